"""Stand-ins for Slurm's programs: what each task of a batch job is told, recorded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Starts the tasks one after the other, as srun numbers them; its own options are recorded and dropped.
SRUN = """#!/usr/bin/env bash
set -e
while [[ "$1" == --* ]]; do echo "$1" >> "$RECORD/srun_options"; shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) "$@"
done
"""
SCONTROL = """#!/usr/bin/env bash
[[ "$*" == "show hostnames node[7-8]" ]] && printf 'node7\\nnode8\\n'
"""
# Records words and environment of every task, then is the real program, or ends as $MEDX_ENDS says.
MEDX = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["RECORD"] + "/tasks", "a") as file:
    file.write(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]) + "\\n")
if "MEDX_ENDS" in os.environ:
    sys.exit(int(os.environ["MEDX_ENDS"]))
sys.path.insert(0, {str(ROOT)!r})
from megatron_medx.cli import main
sys.exit(main())
"""
JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "2",
    "SLURM_JOB_NODELIST": "node[7-8]",
    "SLURM_CPUS_PER_TASK": "12",
}


@pytest.fixture
def submit_script(tmp_path):
    """Function (name of a script, words, **environment) -> the finished script, as a batch job of two tasks.

    It runs from a copy, as slurmd does it, for `tmp_path / "checkout"`; an environment variable of None is not set.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("medx", MEDX)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    checkout = tmp_path / "checkout"
    (checkout / "slurm" / "clusters").mkdir(parents=True)
    (checkout / "slurm" / "job.bash").write_bytes((ROOT / "slurm" / "job.bash").read_bytes())
    basics = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path), "RECORD": str(tmp_path)}
    basics |= {**JOB, "SLURM_SUBMIT_DIR": str(checkout)}

    def run(name, words, **changes):
        spooled = tmp_path / "slurm_script"
        spooled.write_bytes((ROOT / "slurm" / name).read_bytes())
        environment = {key: value for key, value in (basics | changes).items() if value is not None}
        return subprocess.run(
            ["bash", spooled, *words], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )

    return run


@pytest.fixture
def tasks(tmp_path):
    """Function () -> [words, environment, working folder] of each task that was started, in order."""

    def read():
        path = tmp_path / "tasks"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read
