"""What becomes of submitted jobs, asked of Slurm and of the run's files until nothing more comes of them.

A job's outcome is its last state and exit code as Slurm has them, not that a command came back without an error. Slurm
forgets a job some minutes after its end where it keeps no accounts; then the run's own events tell.
"""

import json
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_medx.errors import ConfigError
from megatron_medx.launch.submission import Copy, Submitted
from megatron_medx.launch.tunnel import NoAnswer, Tunnel
from megatron_medx.run_folder.lock import OVER
from megatron_medx.run_folder.names import EVENTS_FILE, METRICS_FILE

LOCAL_S, REMOTE_S = 2.0, 10.0
"""Seconds between two looks at this machine's Slurm, and at another one's."""

TELL_S = 30.0
"""Seconds after which a job that goes on is told of again."""

LOST_S = 600.0
"""Seconds that a connection may be lost before following gives up; jobs go on."""

SUCCESS = "COMPLETED"
UNKNOWN = "UNKNOWN"
"""State of a job of which neither Slurm nor the run's events know."""

MARK = "== medx job "
"""Begins what is said of a job."""


@dataclass(frozen=True, slots=True)
class Look:
    """A job at one time."""

    state: str
    """As Slurm says it: PENDING, RUNNING, COMPLETED, ..."""
    code: int
    """Exit code of its script, meaningful when it is over; of one that a signal ended 128 and the signal."""
    reason: str
    """Why it waits or was ended, in Slurm's word; empty for none."""
    step: int | None
    """The last that metrics.jsonl tells of."""
    loss: float | None
    why: str
    """What slurm/pretrain.sh wrote into the events when it ended; empty before."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of the job."""
        return self.state in OVER or self.state == UNKNOWN

    @property
    def succeeded(self) -> bool:
        """Whether it is over and did what it should."""
        return self.state == SUCCESS and self.code == 0

    def text(self, steps: int) -> str:
        """In a few words, for a run of so many steps."""
        done = f", step {self.step} of {steps}" if self.step is not None else ""
        loss = f", loss {self.loss:.4f}" if self.loss is not None else ""
        code = f", exit code {self.code}" if self.is_over and not self.succeeded else ""
        return f"{self.state}{f' ({self.reason})' if self.reason else ''}{code}{done}{loss}"


def look_script(copy: Copy, jobs: Sequence[Submitted]) -> str:
    """Script that says of each job what Slurm and the files of its run know."""
    lines = []
    for job in jobs:
        run = shlex.quote(copy.path(job.run))
        lines += [
            f"echo {shlex.quote(MARK + job.number)}",
            f"scontrol --oneliner show job {job.number} 2> /dev/null"
            f" || sacct --allocations --noheader --parsable2 --format=State,ExitCode --jobs={job.number} 2> /dev/null",
            f"tail --lines=1 {run}/{METRICS_FILE} 2> /dev/null",
            f"grep --fixed-strings '\"job_ended\"' {run}/{EVENTS_FILE} 2> /dev/null | tail --lines=1",
        ]
    return "\n".join([*lines, "true"])


def read_looks(text: str, jobs: Sequence[Submitted]) -> dict[str, Look]:
    """Read what the script said: number of a job -> how it is."""
    told = dict(part.partition("\n")[::2] for part in f"\n{text}".split(f"\n{MARK}")[1:])
    return {job.number: _read(job.number, told.get(job.number, "")) for job in jobs}


def follow(
    tunnel: Tunnel,
    copy: Copy,
    jobs: Sequence[Submitted],
    steps: dict[str, int],
    say: Callable[[str], None],
    every_s: float | None = None,
) -> dict[str, Look]:
    """Tell of jobs until all are over, and return how each of them ended.

    A state of failure counts when two looks in succession have it: a job that is requeued passes through one.

    Args:
        tunnel, copy: to ask, and where the jobs run.
        jobs: that were submitted.
        steps: of each job's run, by number.
        say: writes a line.
        every_s: between two looks; None for what suits the way there.

    Raises:
        ConfigError: no connection for LOST_S; what became of the jobs is not known.
    """
    every_s = every_s or (LOCAL_S if copy.cluster.host is None else REMOTE_S)
    last: dict[str, Look] = {}
    told: dict[str, tuple[str, float]] = {}
    over: dict[str, Look] = {}
    while len(over) < len(jobs):
        left = [job for job in jobs if job.number not in over]
        looks = read_looks(_ask(tunnel, look_script(copy, left), every_s, say), left)
        for job in left:
            now, before = looks[job.number], last.get(job.number)
            is_over = now.succeeded or (now.is_over and before is not None and before.is_over)
            state, told_s = told.get(job.number, ("", 0.0))
            if is_over:
                over[job.number] = now
            if now.state != state or time.monotonic() - told_s > TELL_S:
                say(f"{time.strftime('%H:%M:%S')}  job {job.number}  {job.run}  {now.text(steps[job.number])}")
                told[job.number] = now.state, time.monotonic()
        last = looks
        if len(over) < len(jobs):
            time.sleep(every_s)
    return over


def explain(tunnel: Tunnel, copy: Copy, job: Submitted) -> str:
    """What `medx status` says of the run of a job that failed, or where it has none the end of the job's log."""
    log = shlex.quote(copy.log(job.number))
    status = f'usage="" may_submit=yes; source slurm/job.bash; "${{alone[@]}}" status {shlex.quote(job.run)}'
    done = tunnel.run(copy.within(f"{{ {status}; }} 2> /dev/null || tail --lines=15 {log}"))
    return (done.out or done.err).rstrip()


def _ask(tunnel: Tunnel, script: str, every_s: float, say: Callable[[str], None]) -> str:
    """What a script says; a connection that is lost is made anew."""
    lost_s = None
    while True:
        try:
            return tunnel.run(script).out
        except NoAnswer as error:
            if lost_s is None:
                lost_s = time.monotonic()
                say(f"{error.found}; trying again")
            if time.monotonic() - lost_s > LOST_S:
                raise ConfigError(
                    f"no connection for {LOST_S:.0f} s: {error.found}",
                    error.needed,
                    "launch the same again with --detach to see whether its jobs live, or look on the cluster: "
                    "squeue --me",
                ) from error
            time.sleep(every_s)


def _read(number: str, text: str) -> Look:
    by_slurm = dict(re.findall(r"\b(JobState|ExitCode|Reason)=(\S+)", text))
    by_accounts = re.search(r"^([A-Z_]+)[^|\n]*\|(\d+:\d+)$", text, re.MULTILINE)
    lines = [_line(line) for line in text.splitlines() if line.startswith("{")]
    metrics = next((line for line in lines if isinstance(line.get("step"), int) and "event" not in line), {})
    ended = next((line for line in lines if line.get("event") == "job_ended" and line.get("job") == number), {})
    if by_slurm:
        state, code, reason = (by_slurm.get(key, "") for key in ("JobState", "ExitCode", "Reason"))
    elif by_accounts:
        (state, code), reason = by_accounts.groups(), ""
    elif ended:
        state, code, reason = SUCCESS if ended.get("code") == 0 else "FAILED", f"{ended.get('code')}:0", ""
    else:
        state, code, reason = UNKNOWN, "0:0", ""
    exit_code, _, by_signal = code.partition(":")
    number_of_signal = int(by_signal or 0)
    loss = metrics.get("loss")
    return Look(
        state=state,
        code=128 + number_of_signal if number_of_signal else int(exit_code or 0),
        reason="" if reason in ("None", "") else reason,
        step=metrics.get("step"),
        loss=loss if isinstance(loss, int | float) else None,
        why=str(ended.get("why", "")),
    )


def _line(text: str) -> dict:
    """A line of a file that is being written; nothing of one that is cut off."""
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}
