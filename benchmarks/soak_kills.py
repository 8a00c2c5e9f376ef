"""Random kills of a run, drawn from a seed and carried out: who dies and when; what is seen of each launch.

Used by soak.py. A kill comes at an instant of the run (while ranks start, after a step, during a save), found by
looking at the run's files every 5 ms.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from megatron_medx.config.checkpoint_folders import CHECKPOINTS, TRACKER_FILE
from megatron_medx.run_folder import events
from megatron_medx.run_folder.names import METRICS_FILE

SAVE_EVERY, FARTHEST = 4, 6
"""Steps between saves, and at most from a resume to the next kill, so that the run is not over before the last kill."""

DEMO_STEPS, NUM_RANKS = 240, 2
"""Of recipe `demo`."""

SIGNALS = ("SIGUSR1", "SIGTERM")
VICTIMS = {"one rank": 8, "all ranks": 5, "launcher and ranks": 3, "SIGUSR1": 3, "SIGTERM": 2}
INSTANTS = {"start": 3, "step": 9, "save": 8}
"""Who and when -> weight in the draw."""

SAVE_S = 0.4
"""A kill during a save comes up to so many seconds after it began to write; that is what a save of the demo takes."""

LOOK_S = 0.005


@dataclass(frozen=True, slots=True)
class Kill:
    """One of the planned kills.

    Args:
        victim: a key of VICTIMS.
        instant: a key of INSTANTS.
        rank: the one that is killed, where it is one.
        ahead: steps from the resume to the kill, where it comes after a step.
        fraction: of the time that a start or a save takes, at which it comes.
    """

    victim: str
    instant: str
    rank: int
    ahead: int
    fraction: float


@dataclass
class Launch:
    """What was seen of one start of the run; seconds since the first one's start."""

    began_s: float
    newest: int
    """Step of the checkpoint that it could go on from; 0 for none."""
    resumed_from: int | None = None
    """Step of the checkpoint that it went on from, 0 for none; None when it did not get so far."""
    struck_s: float = 0.0
    ended_s: float = 0.0
    last_step: int = 0
    """Of metrics.jsonl when it had ended; a start that came to nothing has that of the launch before."""
    code: int | None = None
    curve: list[tuple[float, int]] = field(default_factory=list)
    """When the number of finished steps changed, and to what."""

    @property
    def first_step_s(self) -> float | None:
        """Seconds from its start to its first finished step, None where there was none."""
        return next((now_s - self.began_s for now_s, step in self.curve[1:] if step > self.newest), None)


def draw_kills(num_kills: int, seed: int) -> list[Kill]:
    """The kills of a seed."""
    draw = random.Random(seed)
    victims = draw.choices(list(VICTIMS), list(VICTIMS.values()), k=num_kills)
    instants = draw.choices(list(INSTANTS), list(INSTANTS.values()), k=num_kills)
    return [
        Kill(victim, instant, draw.randrange(NUM_RANKS), draw.randint(1, FARTHEST), draw.random())
        for victim, instant in zip(victims, instants, strict=True)
    ]


def num_steps(num_kills: int) -> int:
    """Steps of the run: the demo's, or so many that it cannot be over before the last kill."""
    return max(DEMO_STEPS, (FARTHEST + 1) * num_kills)


class Soak:
    """Starts a run, kills it as planned, starts it again.

    Args:
        folder: of the run; what it says goes to said.txt beside it.
        command: that starts or resumes it.
        kills: planned.
        start_s: seconds from the start of the command to the first step.
    """

    def __init__(self, folder: Path, command: list[str], kills: Sequence[Kill], start_s: float):
        self.folder, self.command, self.kills, self.start_s = folder, command, kills, start_s
        self.launches: list[Launch] = []
        self._zero_s = time.monotonic()

    def run(self, say: Callable[[str], None]) -> list[Launch]:
        """All kills, then the launch that finishes; returns the launches.

        Raises:
            SystemExit: the run ended before a kill.
        """
        for number, kill in enumerate(self.kills, 1):
            one = self._launch(kill)
            left_s = one.ended_s / number * (len(self.kills) - number)
            say(
                f"kill {number:3d}/{len(self.kills)}  {kill.victim:18} {kill.instant:5}  step {one.last_step:4d}, "
                f"saved {newest_step(self.folder):4d}, code {one.code:4d}   {one.ended_s:5.0f} s, "
                f"{left_s:.0f} s to the last kill"
            )
        self._launch(None)
        return self.launches

    def _launch(self, kill: Kill | None) -> Launch:
        launch, began = Launch(self._now_s(), newest_step(self.folder)), time.time()
        num_before = len(launched(self.folder))
        self.launches.append(launch)
        with open(self.folder.parent / "said.txt", "a") as said:
            process = subprocess.Popen(self.command, stdout=said, stderr=said, start_new_session=True)
        try:
            if kill is not None:
                self._wait(process, launch, self._instant(kill, launch, began))
                if process.poll() is not None:
                    raise SystemExit(f"the run ended with code {process.returncode} before {kill}; see {said.name}")
                launch.struck_s = self._now_s()
                strike(process, kill)
            self._wait(process, launch, lambda: False)
        finally:
            end_session(process)
        launch.code, launch.ended_s = process.returncode, self._now_s()
        if told := launched(self.folder)[num_before:]:
            launch.resumed_from = told[-1]["resumed_from"] or 0
        return launch

    def _wait(self, process: subprocess.Popen, launch: Launch, condition: Callable[[], bool]) -> None:
        """Until the condition holds or the process has ended."""
        while not condition() and process.poll() is None:
            self._look(launch)
            time.sleep(LOOK_S)
        self._look(launch)

    def _look(self, launch: Launch) -> None:
        step = last_step(self.folder)
        if not launch.curve or step != launch.curve[-1][1]:
            launch.curve.append((self._now_s(), step))
        launch.last_step = step

    def _instant(self, kill: Kill, launch: Launch, began: float) -> Callable[[], bool]:
        """Whether the kill's moment has come, asked again and again; `began` in seconds since the epoch."""
        if kill.instant == "start":
            due = time.monotonic() + kill.fraction * self.start_s
            return lambda: time.monotonic() >= due
        if kill.instant == "step":
            target = launch.newest + kill.ahead
            return lambda: is_training(self.folder, began) and last_step(self.folder) >= target
        step = SAVE_EVERY * (launch.newest // SAVE_EVERY + 1)
        saving, due = self.folder / CHECKPOINTS / f"iter_{step:07d}", []

        def condition():
            if not due and changed_since(saving, began):
                due.append(time.monotonic() + kill.fraction * SAVE_S)
            return bool(due) and time.monotonic() >= due[0]

        return condition

    def _now_s(self) -> float:
        return time.monotonic() - self._zero_s


def strike(process: subprocess.Popen, kill: Kill) -> None:
    """Kill or signal; processes that have not been started yet, or are gone, are none the worse for it."""
    ranks = rank_processes(process)
    if kill.victim == "one rank":
        victims, number = ranks[kill.rank : kill.rank + 1] or [psutil.Process(process.pid)], signal.SIGKILL
    elif kill.victim == "all ranks":
        victims, number = ranks or [psutil.Process(process.pid)], signal.SIGKILL
    elif kill.victim == "launcher and ranks":
        victims, number = [psutil.Process(process.pid), *ranks], signal.SIGKILL
    else:
        victims, number = ranks or [psutil.Process(process.pid)], signal.Signals[kill.victim]
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(number)


def rank_processes(launcher: subprocess.Popen) -> list[psutil.Process]:
    """Processes of the ranks that have been started, by rank."""
    ranks = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(launcher.pid).children():
            with contextlib.suppress(psutil.Error):
                if "megatron_medx.training.worker" in child.cmdline():
                    ranks[int(child.environ()["RANK"])] = child
    return [process for _, process in sorted(ranks.items())]


def end_session(process: subprocess.Popen) -> None:
    """Kill what is left of a launch: after a launcher is killed its ranks live on, as they do not on a dead node."""
    for other in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(other.pid) == process.pid:
                other.kill()
    process.wait()


def newest_step(folder: Path) -> int:
    """Step of the newest whole checkpoint, 0 for none."""
    tracker = folder / CHECKPOINTS / TRACKER_FILE
    text = tracker.read_text().strip() if tracker.exists() else ""
    return int(text or 0)


def launched(folder: Path) -> list[dict]:
    """Events of the run's launches."""
    return [line for line in events.read(folder) if line["event"] == "launched"]


def read_steps(folder: Path) -> list[dict]:
    """Whole lines of metrics.jsonl."""
    path = folder / METRICS_FILE
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def last_step(folder: Path) -> int:
    """Of metrics.jsonl, 0 before the first."""
    path = folder / METRICS_FILE
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4000))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1])["step"] if lines else 0


def is_training(folder: Path, began: float) -> bool:
    """Whether a step has been written since."""
    path = folder / METRICS_FILE
    return path.exists() and path.stat().st_mtime > began


def changed_since(folder: Path, began: float) -> bool:
    """Whether something was written into a folder since: one that a kill left behind may be written anew."""
    with contextlib.suppress(FileNotFoundError):
        return folder.stat().st_mtime > began
    return False
