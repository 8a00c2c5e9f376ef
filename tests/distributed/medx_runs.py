"""Runs of the `medx` command as subprocesses, several at once, and what they leave behind.

Importing torch and Megatron costs a rank more than its few tiny steps, so runs go side by side: as many ranks at a time
as there are cores. A test module submits all of its work when its first test starts; each test waits for its own.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]

SMALL = (
    "data.seq_len_tokens=512", "data.packing=false", "data.min_pixels=4096", "data.max_pixels=25600", "run.seed=7",
    "model.hidden_size=64", "model.num_layers=4", "model.num_heads=4", "model.num_kv_heads=2", "model.head_dim=32",
    "model.ffn_hidden_size=128", "model.tie_embeddings=true", "model.vision.deepstack_layers=1,2",
    "model.vision.hidden_size=32", "model.vision.num_heads=2", "model.vision.num_layers=3",
    "model.vision.ffn_hidden_size=64", "optimizer.lr=2e-3", "optimizer.min_lr=2e-4", "optimizer.warmup_steps=2",
    "training.global_batch_rows=4", "training.steps=10", "training.precision=fp32", "checkpoint.every_steps=100",
)  # fmt: skip
"""What makes recipe `demo` as small as Qwen3-VL gets; every number a test relies on stands here."""

GRIDS = {"1 process": (1, 1, 1), "TP2": (2, 2, 1), "PP2": (2, 1, 2), "DP2": (2, 1, 1), "TP2 x PP2": (4, 2, 2)}
"""Name -> ranks, tensor, pipeline. Tensor parallelism brings sequence parallelism with it."""

STOP_AT_5 = "megatron.exit_interval=5"
"""Saves and ends at step 5 while the schedule stays that of training.steps."""

SCENARIOS = {
    "tied": ("checkpoint.every_steps=5",),
    "untied, packed, own rates": (
        "model.tie_embeddings=false", "data.packing=true", "data.seq_len_tokens=320", "training.global_batch_rows=2",
        "optimizer.vision_lr=1e-30", "optimizer.merger_lr=5e-4", STOP_AT_5,
    ),
    "merger alone": ("training.freeze=vision,language", "optimizer.lr=2e-2", STOP_AT_5),
}  # fmt: skip
"""Name -> overrides after SMALL. The last two are different enough to share a run between several claims."""


@dataclass(frozen=True, slots=True)
class Run:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str
    folder: Path
    duration_s: float
    survivors: tuple[int, ...] = ()
    """Processes of the run that were still there after the launcher's end."""

    @property
    def said(self) -> str:
        """All that a person saw."""
        return self.stdout + self.stderr

    @property
    def checkpoints(self) -> Path:
        """Root of the checkpoints."""
        return self.folder / "checkpoints"

    def metrics(self) -> list[dict]:
        """Lines of metrics.jsonl."""
        return read_metrics(self.folder)

    def column(self, key: str) -> list:
        """One key of every line."""
        return [line[key] for line in self.metrics()]

    def ok(self) -> "Run":
        """Itself, when it succeeded; otherwise fails with what was said and the logs' ends."""
        logs = "".join(f"\n--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("logs/*")))
        assert self.code == 0, f"code {self.code}\n{self.said}{logs}"
        return self


class Runs:
    """Starts commands, at most `cores` ranks at a time and in order of asking; ends what is left when closed.

    Args:
        folder: where run folders are made.
        data: data folder of runs that name none.
    """

    def __init__(self, folder: Path, data: Path):
        self.folder, self.data = folder, data
        self._cores = len(os.sched_getaffinity(0))
        self._free, self._queue, self._changed = self._cores, deque(), threading.Condition()
        self._threads = ThreadPoolExecutor(max_workers=64)
        self._scenarios: dict[tuple[str, str], Future] = {}
        self._lock = threading.Lock()
        self._alive: set[subprocess.Popen] = set()
        self._closed = False

    def submit(self, flow: Callable, *args) -> Future:
        """Start `flow(self, *args)` in a thread."""
        return self._threads.submit(flow, self, *args)

    def scenario(self, name: str, grid: str) -> Future:
        """The run of a scenario on a grid, shared by tests: 5 steps (`tied` on 1 process: 10, saved at 5 and 10)."""
        with self._lock:
            if (name, grid) not in self._scenarios:
                stop = () if (name, grid) == ("tied", "1 process") else (STOP_AT_5,)
                overrides = (*SMALL, *SCENARIOS[name], *stop)
                run_name = re.sub(r"\W+", "_", f"{name} {grid}")
                self._scenarios[name, grid] = self.submit(lambda runs: runs.train(run_name, *overrides, grid=grid))
            return self._scenarios[name, grid]

    def train(
        self,
        name: str,
        *words: str,
        grid: str = "1 process",
        config: str = "demo",
        while_running: Callable[[subprocess.Popen, Path], None] | None = None,
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
    ) -> Run:
        """`medx train CONFIG run.folder=<name> data.path=<data> WORDS`; words that come later win.

        Args:
            name: of the run folder.
            words: overrides and options.
            grid: one of GRIDS.
            config: recipe or run.yaml.
            while_running: called with the launcher's process and the run folder as soon as it runs.
            environment: added to this process's.
            folder: run folder elsewhere.
        """
        ranks, tensor, pipeline = GRIDS[grid]
        folder = folder or self.folder / name
        command = [
            "train", config, f"run.folder={folder}", f"data.path={self.data}",
            f"parallel.tensor={tensor}", f"parallel.pipeline={pipeline}", *words, "--nproc", str(ranks),
        ]  # fmt: skip
        with self._cores_for(ranks):
            return self.medx(command, folder, while_running, environment)

    def resume(self, source: Run, name: str, *words: str, grid: str = "1 process", **options) -> Run:
        """Copy the source's folder as it is, then go on there with `--resume` on a grid."""
        folder = self.folder / name
        shutil.copytree(source.folder, folder)
        return self.train(name, *words, "--resume", grid=grid, config=str(folder / "run.yaml"), **options)

    def medx(
        self,
        words: list[str],
        folder: Path,
        while_running: Callable[[subprocess.Popen, Path], None] | None = None,
        environment: dict[str, str] | None = None,
    ) -> Run:
        """The command itself, started in a folder where it finds nothing."""
        assert not self._closed, "the session is over"
        command = [sys.executable, "-m", "megatron_medx.cli", *words]
        # threads of runs side by side must not spin while they wait
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_WAIT_POLICY": "passive", **(environment or {})}
        for name in ("OMP_NUM_THREADS", *(() if environment else ("MASTER_PORT",))):
            env.pop(name, None)
        start, empty = time.monotonic(), self.folder / "elsewhere"
        empty.mkdir(exist_ok=True)
        log = self.folder / f"said_{threading.get_ident()}_{start}"
        with open(f"{log}.out", "w+") as out, open(f"{log}.err", "w+") as err:
            process = subprocess.Popen(command, cwd=empty, env=env, stdout=out, stderr=err, start_new_session=True)
            self._alive.add(process)
            try:
                if while_running:
                    while_running(process, folder)
                code, duration_s = process.wait(timeout=480), time.monotonic() - start
                survivors = lasting_pids(process)
            finally:
                end_session(process)
                self._alive.discard(process)
            return Run(code, Path(out.name).read_text(), Path(err.name).read_text(), folder, duration_s, survivors)

    def close(self) -> None:
        """End everything that is still running."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in list(self._alive):
            end_session(process)
        self._threads.shutdown(wait=True)

    @contextlib.contextmanager
    def _cores_for(self, ranks: int) -> Iterator[None]:
        """Wait for one's turn; more ranks than cores take all cores."""
        wanted, turn = min(ranks, self._cores), object()
        with self._changed:
            self._queue.append(turn)
            self._changed.wait_for(lambda: self._queue[0] is turn and self._free >= wanted)
            self._queue.popleft()
            self._free -= wanted
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


def end_session(process: subprocess.Popen) -> None:
    """Kill a launcher that we started, with all its ranks and their helpers."""
    for pid in (process.pid, *session_pids(process)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def session_pids(process: subprocess.Popen) -> tuple[int, ...]:
    """Processes, but for the dead, that a launcher started, also through others."""
    found = []
    for other in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getsid(other.pid) == process.pid and other.status() != psutil.STATUS_ZOMBIE:
                found.append(other.pid)
    return tuple(found)


def lasting_pids(process: subprocess.Popen, patience_s: float = 5.0) -> tuple[int, ...]:
    """What is left of a session when those that are ending have had their time."""
    deadline = time.monotonic() + patience_s
    while (pids := session_pids(process)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return pids


def worker_pids(launcher: subprocess.Popen) -> list[int]:
    """Process ids of the ranks, by rank."""
    ranks = {}
    for child in psutil.Process(launcher.pid).children():
        with contextlib.suppress(psutil.Error):
            if "megatron_medx.training.worker" in child.cmdline():
                ranks[int(child.environ()["RANK"])] = child.pid
    return [pid for _, pid in sorted(ranks.items())]


def wait_until(condition: Callable[[], bool], launcher: subprocess.Popen, what: str, interval_s: float = 0.02) -> None:
    """Poll until `condition` holds; fails when the launcher ends before."""
    while not condition():
        assert launcher.poll() is None, f"the run ended before {what}"
        time.sleep(interval_s)


def read_metrics(folder: Path) -> list[dict]:
    """Lines of metrics.jsonl; none where there is no file yet."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tracker(folder: Path) -> str:
    """The step that Megatron would resume from, empty where there is none."""
    path = folder / "checkpoints" / "latest_checkpointed_iteration.txt"
    return path.read_text().strip() if path.exists() else ""


def stopped_at_5(source: Run, folder: Path) -> Run:
    """A copy of a finished run as it would be had it died after step 10 but before the save at 10."""
    shutil.copytree(source.folder, folder)
    shutil.rmtree(folder / "checkpoints" / "iter_0000010")
    (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("5")
    return Run(source.code, source.stdout, source.stderr, folder, source.duration_s)


def loss_table(losses: dict[str, list[float]]) -> str:
    """Losses by step, one row a run, with the largest difference from the first row."""
    reference = next(iter(losses.values()))
    width = max(map(len, losses))
    rows = []
    for name, values in losses.items():
        worst = max((abs(a - b) for a, b in zip(reference, values, strict=False)), default=float("nan"))
        numbers = " ".join(f"{value:.7f}" for value in values)
        rows.append(f"{name:<{width}}  {numbers}  worst {worst:.1e}")
    return "\n" + "\n".join(rows)


def assert_same_losses(losses: dict[str, list[float]], tolerance: float) -> None:
    """All rows equal the first one; the message is the whole table."""
    reference = next(iter(losses.values()))
    for values in losses.values():
        assert len(values) == len(reference), loss_table(losses)
        assert all(abs(a - b) <= tolerance for a, b in zip(reference, values, strict=True)), loss_table(losses)


def assert_clear_error(run: Run, *words: str, code: int = 2) -> None:
    """Ended with `code`, said the three parts and `words`, and showed no traceback."""
    assert run.code == code, f"code {run.code}\n{run.said}"
    assert "Traceback" not in run.said, run.said
    for word in ("found:", "needed:", "do:", *words):
        assert word in run.said, f"{word!r} not in\n{run.said}"
