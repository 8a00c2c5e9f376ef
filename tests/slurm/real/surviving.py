"""A run in a job, followed and disturbed: its steps, its events, its ranks' processes.

Nothing here sleeps for a guessed time. A rank that is held (SIGSTOP) holds all others at their next collective, so that
whatever is done meanwhile is done between two known steps.
"""

import contextlib
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from slurm_jobs import PATIENCE_S, Job

from megatron_medx.run_folder import events

EXACT = ("loss", "grad_norm", "lr", "tokens", "samples_crc")
"""Keys of metrics.jsonl that a disturbed run must share with the undisturbed one, every bit."""


class Run:
    """The run of a job.

    Args:
        job: which trains.
        folder: of the run.
    """

    def __init__(self, job: Job, folder: Path):
        self.job, self.folder = job, folder

    def metrics(self) -> list[dict]:
        """Lines of metrics.jsonl, but for one that is being written."""
        path = self.folder / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def column(self, key: str) -> list:
        """One key of every line."""
        return [line[key] for line in self.metrics()]

    def events(self, *names: str) -> list[dict]:
        """Its events, oldest first; with names those alone."""
        return [line for line in events.read(self.folder) if not names or line["event"] in names]

    def said(self) -> str:
        """The job's log and events, for messages."""
        told = "\n".join(json.dumps(line) for line in self.events())
        logs = "".join(f"\n--- {log.name}\n{log.read_text()[-1500:]}" for log in sorted(self.folder.glob("logs/rank*")))
        return f"{self.job.said()}\nevents:\n{told}{logs}"

    def wait_until(self, condition: Callable[[], bool], what: str, interval_s: float = 0.005) -> None:
        """Poll files; now and then ask Slurm whether the job still lives."""
        deadline, next_look = time.monotonic() + PATIENCE_S, time.monotonic() + 2
        while not condition():
            if time.monotonic() > next_look:
                facts, next_look = self.job.facts(), time.monotonic() + 2
                if condition():
                    return
                assert not self.job.is_over(facts), f"{facts}: over before {what}\n{self.said()}"
                assert time.monotonic() < deadline, f"{PATIENCE_S} s without {what}\n{self.said()}"
            time.sleep(interval_s)

    def reached(self, step: int, launch: int = 1) -> None:
        """Wait for a step of the n-th launch."""

        def condition():
            told = self.events("launched", "first_step")
            begun = [line["event"] for line in told].count("launched") >= launch and told[-1]["event"] == "first_step"
            return begun and len(self.metrics()) >= step

        self.wait_until(condition, f"step {step} of launch {launch}")

    def ranks(self) -> dict[int, psutil.Process]:
        """Processes that train, by rank."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if "--auto-resume" not in words or f"run.folder={self.folder}" not in words or "srun" in words[0]:
                    continue
                environment = process.environ()
                if environment.get("SLURM_JOB_ID") == self.job.number and environment.get("SLURM_STEP_ID"):
                    found.setdefault(int(environment["SLURM_PROCID"]), process)
        return found

    def kill(self, *ranks: int) -> None:
        """SIGKILL some ranks, or all of them at once."""
        processes = self.ranks()
        for rank in ranks or processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                processes[rank].kill()

    @contextlib.contextmanager
    def held(self, step: int, launch: int = 1, rank: int = 1) -> Iterator[psutil.Process]:
        """After a step of a launch, hold all ranks between two steps by stopping one of them, which is yielded."""
        self.reached(step, launch)
        process = self.ranks()[rank]
        process.suspend()
        try:
            yield process
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def signal_arrives(self, held: psutil.Process, number: signal.Signals) -> None:
        """Wait until a signal that Slurm sends has reached a rank that is held; Slurm may wake it for that."""

        def condition():
            try:
                if held.status() != psutil.STATUS_STOPPED:
                    return True
                status = Path(f"/proc/{held.pid}/status").read_text()
            except (psutil.NoSuchProcess, FileNotFoundError):
                return True
            pending = [int(word, 16) for word in re.findall(r"^(?:Sig|Shd)Pnd:\t(\w+)$", status, re.M)]
            return any(mask >> (number - 1) & 1 for mask in pending)

        self.wait_until(condition, number.name)

    def finished(self) -> "Run":
        """Wait for the job's success."""
        facts = self.job.ended()
        assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), f"{facts}\n{self.said()}"
        return self


def assert_same_steps(run: Run, undisturbed: Run, keys: tuple[str, ...] = EXACT) -> None:
    """Every step is told once, and is bit for bit that of the undisturbed run."""
    ours, theirs = run.metrics(), undisturbed.metrics()
    assert [line["step"] for line in ours] == [line["step"] for line in theirs], run.said()
    for line, other in zip(ours, theirs, strict=True):
        assert {key: line[key] for key in keys} == {key: other[key] for key in keys}, f"step {line['step']}"


def assert_nothing_lost(run: Run) -> list[int]:
    """Every launch but the first goes on from the newest checkpoint; returns the steps that they went on from."""
    resumed, saved = [], 0
    for line in run.events("launched", "saved", "checkpoint_damaged"):
        if line["event"] == "saved":
            saved = line["step"]
        elif line["event"] == "launched":
            if saved:
                assert (line["resumed_from"] or 0) >= saved, run.said()
                resumed.append(line["resumed_from"])
    return resumed
