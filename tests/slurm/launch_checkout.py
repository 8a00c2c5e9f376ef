"""Checkouts that `medx launch` takes a commit from: a clone of this one's files, and a small one for stand-ins."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / ".venv-launch"
"""Where `make launch-env` puts nemo-run."""

# Does what courier.py does, with nothing but git and bash, and records each errand.
COURIER = f"""#!{sys.executable}
import json, os, shutil, subprocess, sys
for line in sys.stdin:
    asked = json.loads(line)
    with open(os.environ["RECORD"] + "/errands", "a") as file:
        file.write(json.dumps(asked) + "\\n")
    answer, errand = None, asked["errand"]
    if errand == "package":
        answer = asked["folder"] + "/packed.tar.gz"
        subprocess.run(["git", "-C", asked["checkout"], "archive", "--output", answer, asked["sha"]], check=True)
    elif errand == "put":
        shutil.copy(asked["source"], asked["target"])
    else:
        done = subprocess.run(["bash", "-c", asked["command"]], capture_output=True, text=True)
        answer = {{"code": done.returncode, "out": done.stdout, "err": done.stderr}}
    print(json.dumps({{"answer": answer}}), flush=True)
"""


def commit_all(folder: Path, title: str) -> str:
    """Commit every file of a folder, which becomes a repository; return the commit."""
    name = ["-c", "user.name=tests", "-c", "user.email=tests@example.org"]
    for words in (["init", "--quiet"], ["add", "--all"], [*name, "commit", "--quiet", "--message", title]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def clone_files(folder: Path) -> None:
    """Copy the files of this checkout as they are, committed or not, but for those that git ignores."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
            (folder / name).chmod((ROOT / name).stat().st_mode)


def add_launcher(folder: Path, real: bool) -> None:
    """Give a checkout nemo-run's environment, or the stand-in for it."""
    python = folder / LAUNCHER.name / "bin" / "python"
    python.parent.mkdir(parents=True)
    if real:
        python.write_text(f'#!/bin/sh\nexec {LAUNCHER}/bin/python "$@"\n')
    else:
        python.write_text(COURIER)
    python.chmod(0o755)
