"""Stand-ins for Slurm's programs, containers and `medx`: what each is told is recorded, and they answer as arranged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Starts all tasks at once, hands SIGUSR1 on to them and ends with the largest of their codes, as srun does; its own
# options are recorded and dropped.
SRUN = f"""#!{sys.executable}
import json, os, signal, subprocess, sys
words = sys.argv[1:]
if words == ["--help"]:
    sys.exit(print(os.environ.get("SRUN_HELP", "")))
options = []
while words[0].startswith("--"):
    options.append(words.pop(0))
with open(os.environ["RECORD"] + "/srun_options", "a") as file:
    file.write(json.dumps(options) + "\\n")
given = dict(option.removeprefix("--").split("=", 1) for option in options if "=" in option)
num_tasks, tasks = int(given.get("ntasks", os.environ.get("SLURM_NTASKS", 1))), []
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
for rank in range(num_tasks):
    place = {{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 2), "SLURM_NTASKS": str(num_tasks)}}
    tasks.append(subprocess.Popen(words, env={{**os.environ, **place}}))
sys.exit(max(task.wait() for task in tasks))
"""
# `scontrol requeue` says what $REQUEUE_SAYS has, and fails then.
SCONTROL = """#!/usr/bin/env bash
case "$*" in
    "show hostnames node[7-8]") printf 'node7\\nnode8\\n' ;;
    "--oneliner show job 4711") echo "JobId=4711 JobState=RUNNING Reason=None Requeue=1 Restarts=0" ;;
    "requeue 4711")
        echo requeued >> "$RECORD/requeues"
        [[ -z "${REQUEUE_SAYS:-}" ]] || { echo "$REQUEUE_SAYS" >&2; exit 1; } ;;
    *) echo "scontrol $*?" >&2; exit 1 ;;
esac
"""
# Records its words. With --test-only it refuses as $SBATCH_REFUSES says.
SBATCH = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$RECORD/submissions"
if [[ "$1" == --test-only ]]; then
    [[ -z "${SBATCH_REFUSES:-}" ]] || { echo "$SBATCH_REFUSES" >&2; exit 1; }
else
    echo 4712
fi
"""
SINFO = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$RECORD/sinfo"
printf '%s\\n' "${GRES:-gpu:h100:8(S:0-1)}"
"""
SQUEUE = """#!/usr/bin/env bash
printf '4710\\n4711\\n'
"""
# Records its words up to the image's, and runs the command that follows.
APPTAINER = """#!/usr/bin/env bash
said=""
while [[ "$1" != *.sif ]]; do said+="$1 "; shift; done
echo "$said$1" >> "$RECORD/apptainer" # at once: tasks do so side by side
shift
INSIDE=apptainer exec "$@"
"""
# Records words and environment of every process. The n-th `medx train`, `medx job begin`, ... of a rank does what the
# n-th answer (or the last) for `train`, `begin`, ... says: [exit code, text], or with a code of null waits for SIGUSR1
# and ends with 75. Without answers it is the real program, or ends as $MEDX_ENDS says.
MEDX = f"""#!{sys.executable}
import json, os, signal, sys
words, record = sys.argv[1:], os.environ["RECORD"]
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
key, rank = words[words[0] == "job"], os.environ.get("SLURM_PROCID")
before = open(record + "/tasks").readlines() if os.path.exists(record + "/tasks") else []
earlier = [json.loads(line) for line in before]
turn = sum(old[old[0] == "job"] == key and where.get("SLURM_PROCID") == rank for old, where, _ in earlier)
with open(record + "/tasks", "a") as file:
    file.write(json.dumps([words, dict(os.environ, PID=str(os.getpid())), os.getcwd()]) + "\\n")
if os.path.exists(record + "/answers"):
    answers = json.load(open(record + "/answers"))[key]
    code, text = answers[min(turn, len(answers) - 1)]
    print(text, end="", flush=True)
    while code is None:
        signal.pause()
    sys.exit(code)
if "MEDX_ENDS" in os.environ:
    sys.exit(int(os.environ["MEDX_ENDS"]))
sys.path.insert(0, {str(ROOT)!r})
from megatron_medx.cli import main
sys.exit(main())
"""
PROGRAMS = {
    "srun": SRUN,
    "scontrol": SCONTROL,
    "sbatch": SBATCH,
    "sinfo": SINFO,
    "squeue": SQUEUE,
    "apptainer": APPTAINER,
    "medx": MEDX,
}
JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "2",
    "SLURM_JOB_NODELIST": "node[7-8]",
    "SLURM_CPUS_PER_TASK": "12",
    "SLURM_JOB_CPUS_PER_NODE": "96(x2)",
}


@pytest.fixture
def checkout(tmp_path):
    """A folder with what a job finds of the checkout, and beside it `bin` with the stand-ins."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    folder = tmp_path / "checkout"
    (folder / "slurm" / "clusters").mkdir(parents=True)
    for script in (ROOT / "slurm").iterdir():
        if script.is_file():
            (folder / "slurm" / script.name).write_bytes(script.read_bytes())
            (folder / "slurm" / script.name).chmod(script.stat().st_mode)
    return folder


@pytest.fixture
def start_script(tmp_path, checkout):
    """Function (name of a script, words, **environment) -> the running script, as a batch job of two nodes.

    It runs from a copy, as slurmd does it, for the checkout; an environment variable of None is not set.
    """
    basics = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path), "RECORD": str(tmp_path)}
    basics |= {**JOB, "SLURM_SUBMIT_DIR": str(checkout)}

    def start(name, words, **changes):
        spooled = tmp_path / "slurm_script"
        spooled.write_bytes((ROOT / "slurm" / name).read_bytes())
        environment = {key: value for key, value in (basics | changes).items() if value is not None}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(["bash", spooled, *words], env=environment, cwd=tmp_path, **pipes)

    return start


@pytest.fixture
def submit_script(start_script):
    """The same -> the finished script."""

    def run(name, words, **changes):
        process = start_script(name, words, **changes)
        said, complained = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, said, complained)

    return run


@pytest.fixture
def answers(tmp_path):
    """Function (what `medx` does, see MEDX above: begin=[...], train=[...])."""
    return lambda **given: (tmp_path / "answers").write_text(json.dumps(given))


@pytest.fixture
def tasks(tmp_path):
    """Function () -> [words, environment, working folder] of each process of medx that was started, in order."""

    def read():
        path = tmp_path / "tasks"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read


@pytest.fixture
def srun_options(tmp_path):
    """Function () -> the options of each srun, in order."""

    def read():
        path = tmp_path / "srun_options"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read
