"""Runs of the `medx` command, several at once, and what they leave behind.

Importing torch and Megatron costs a rank more than its few tiny steps. So most runs are warm: their processes are
forked from one that has imported everything (warm_ranks.py). Runs about processes, signals and what a person sees are
cold: the command as it is typed. Two runs of several ranks go side by side on two cores, because ranks also wait for
one another. A test module submits its work when its first test starts; each test waits for its own.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grids
from processes import end_session, lasting_pids

from tests.turns import Turns

REPOSITORY = Path(__file__).parents[2]

LIMIT_S = 480
"""Seconds a command may take."""

WARM_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""Without threads before the fork."""


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
    """Starts commands, a few at a time and in order of asking; ends what is left when closed.

    Args:
        folder: where run folders are made.
        data: data folder of runs that name none.
    """

    def __init__(self, folder: Path, data: Path):
        self.folder, self.data = folder, data
        self._empty = folder / "elsewhere"
        self._empty.mkdir()
        self._cores = len(os.sched_getaffinity(0))
        self._turns = Turns(2 * self._cores)
        self._threads = ThreadPoolExecutor(max_workers=256)  # most of them wait for one another's runs
        self._shared: dict[str, Future] = {}
        self._lock = threading.RLock()
        self._warm: subprocess.Popen | None = None
        self._alive: set[subprocess.Popen] = set()
        self._closed = False

    def submit(self, flow: Callable, *args) -> Future:
        """Start `flow(self, *args)` in a thread."""
        return self._threads.submit(flow, self, *args)

    def once(self, name: str, flow: Callable[["Runs"], object]) -> Future:
        """Start `flow(self)`; whoever asks for the name again gets the same."""
        with self._lock:
            if name not in self._shared:
                self._shared[name] = self.submit(flow)
            return self._shared[name]

    def scenario(self, name: str, grid: str = grids.ONE) -> Future:
        """The run of a scenario on a grid, shared by tests."""
        words = (*grids.SMALL, *grids.SCENARIOS[name])
        cold, title = name in grids.COLD, f"{name} on {grid}"
        return self.once(title, lambda runs: runs.train(title, *words, grid=grid, cold=cold))

    def train(
        self,
        name: str,
        *words: str,
        grid: str = grids.ONE,
        config: str = "demo",
        folder: Path | None = None,
        cold: bool = False,
        **options,
    ) -> Run:
        """`medx train CONFIG run.folder=<name> data.path=<data> GRID WORDS`; words that come later win.

        Args:
            name: of the run folder.
            words: overrides and options.
            grid: in the notation of grids.py.
            config: recipe or run.yaml.
            folder: run folder elsewhere.
            cold: started like a person's; implied by options.
            options: of `medx`.
        """
        folder = folder or self.folder / re.sub(r"\W+", "_", name)
        given = [f"run.folder={folder}", f"data.path={self.data}", "log.tensorboard=false", *grids.words(grid)]
        command = ["train", config, *given, *words]
        with self._cores_for(grids.num_ranks(grid)):
            return self.medx(command, folder, **options) if cold or options else self.warm(command, folder)

    def resume(self, source: Run, name: str, *words: str, grid: str = grids.ONE, **options) -> Run:
        """Copy the source's folder as it is, then go on there with `--resume` on a grid."""
        folder = self.folder / re.sub(r"\W+", "_", name)
        shutil.copytree(source.folder, folder)
        return self.train(name, *words, "--resume", grid=grid, config=str(folder / "run.yaml"), **options)

    def medx(
        self,
        words: list[str],
        folder: Path,
        while_running: Callable[[subprocess.Popen, Path], None] | None = None,
        environment: dict[str, str] | None = None,
    ) -> Run:
        """The command itself, started in a folder where it finds nothing.

        Args:
            words: after `medx`.
            folder: of the run.
            while_running: called with the launcher's process and the run folder as soon as it runs.
            environment: added to this process's.
        """
        assert not self._closed, "the session is over"
        start, (out, err) = time.monotonic(), self._screen()
        process = self._python("-m", "megatron_medx.cli", *words, out=out, err=err, environment=environment or {})
        try:
            if while_running:
                while_running(process, folder)
            code, duration_s = process.wait(timeout=LIMIT_S), time.monotonic() - start
            survivors = lasting_pids(process)
        finally:
            end_session(process)
            self._alive.discard(process)
        return Run(code, out.read_text(), err.read_text(), folder, duration_s, survivors)

    def warm(self, words: list[str], folder: Path) -> Run:
        """The same command in processes forked from a warm one."""
        assert not self._closed, "the session is over"
        start, (out, err) = time.monotonic(), self._screen()
        request = {"words": words, "folder": str(self._empty), "out": str(out), "err": str(err), "limit_s": LIMIT_S}
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._warm_socket())
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = connection.makefile().read()
        code = int(answer) if answer.strip() else -1
        return Run(code, out.read_text(), err.read_text(), folder, time.monotonic() - start)

    def close(self) -> None:
        """End everything that is still running."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in list(self._alive):
            end_session(process)
        self._threads.shutdown(wait=True)

    def _screen(self) -> tuple[Path, Path]:
        """Two new files for what a command says."""
        log = self.folder / f"said_{threading.get_ident()}_{time.monotonic()}"
        return Path(f"{log}.out"), Path(f"{log}.err")

    def _python(self, *words: str, out: Path, err: Path, environment: dict[str, str]) -> subprocess.Popen:
        """A Python in a session of its own, which `close` ends."""
        # threads of runs side by side must not spin while they wait
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_WAIT_POLICY": "passive"}
        for name in ("OMP_NUM_THREADS", "MASTER_PORT"):
            env.pop(name, None)
        with open(out, "w") as out_file, open(err, "w") as err_file:
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=self._empty,
                env=env | environment,
                stdout=out_file,
                stderr=err_file,
                start_new_session=True,
            )
        self._alive.add(process)
        return process

    def _warm_socket(self) -> str:
        """Where the warm process listens; the first who asks starts it."""
        path, (out, err) = self.folder / "warm.sock", self._screen()
        with self._lock:
            if self._warm is None:
                program = str(Path(__file__).with_name("warm_ranks.py"))
                self._warm = self._python(program, str(path), out=out, err=err, environment=WARM_ENVIRONMENT)
            while not path.exists():
                assert self._warm.poll() is None, f"no warm process:\n{err.read_text()}"
                time.sleep(0.05)
        return str(path)

    def _cores_for(self, ranks: int) -> contextlib.AbstractContextManager[None]:
        """Wait for one's turn; more ranks than cores count as so many: half of what may run."""
        return self._turns.take(min(ranks, self._cores))


def read_metrics(folder: Path) -> list[dict]:
    """Lines of metrics.jsonl; none where there is no file yet."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tracker(folder: Path) -> str:
    """The step that Megatron would resume from, empty where there is none."""
    path = folder / "checkpoints" / "latest_checkpointed_iteration.txt"
    return path.read_text().strip() if path.exists() else ""


def stopped_at(step: int, source: Run, folder: Path) -> Run:
    """A copy of a finished run as it would be had it died after its last step, but with `step` saved last."""
    shutil.copytree(source.folder, folder)
    for saved in folder.glob("checkpoints/iter_*"):
        if int(saved.name.removeprefix("iter_")) > step:
            shutil.rmtree(saved)
    (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(step))
    return Run(source.code, source.stdout, source.stderr, folder, source.duration_s)
