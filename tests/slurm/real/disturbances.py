"""What happens to runs on a cluster, each as a function that lets it happen to one: flows of the tests beside.

A flow gets a Lab and returns what its tests look at. Flows run side by side, as many as have room on the cluster's
nodes; each names the nodes that it takes. Steps at which something happens leave steps before the next save, so that
there is something to lose.
"""

import contextlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
from slurm_jobs import PATIENCE_S, Job
from surviving import Run

from tests.turns import Turns

SAVE_EVERY, STEPS = 4, 16


class Lab:
    """Starts runs of slurm/pretrain.sh, and flows side by side.

    Args:
        folder: where run folders are made.
        submit: function (words after `sbatch`) -> Job.
        words: overrides of every run.
        num_nodes: of the cluster.
    """

    def __init__(self, folder: Path, submit: Callable[..., Job], words: list[str], num_nodes: int):
        self.folder, self.submit, self.words = folder, submit, words
        self._nodes = Turns(num_nodes)
        self._threads = ThreadPoolExecutor(max_workers=len(FLOWS))

    def train(self, name: str, *words: str, options: tuple[str, ...] = ("--nodes=2",), folder: Path | None = None):
        """Submit `slurm/pretrain.sh demo` in a folder of its own, or again in one that is there."""
        folder = folder or self.folder / name
        job = self.submit(*options, "slurm/pretrain.sh", "demo", *self.words, *words, f"run.folder={folder}")
        return Run(job, folder)

    def again(self, run: Run, *words: str, options: tuple[str, ...] = ("--nodes=1",)) -> Run:
        """What a person does: the same command once more."""
        return self.train("", *words, options=options, folder=run.folder)

    def start(self, flow: Callable[["Lab"], object], num_nodes: int) -> Future:
        """Run a flow in a thread, when so many nodes are free and those before it have begun."""

        def wait_and_run():
            with self._nodes.take(num_nodes):
                return flow(self)

        return self._threads.submit(wait_and_run)

    def close(self) -> None:
        """Forget flows that have not begun; those that have end with their jobs."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def signalled_and_a_rank_killed(lab: Lab):
    """SIGUSR1 after step 5, and after the requeue one rank is killed; meanwhile a second job wants the folder."""
    run = lab.train("signalled")
    with run.held(5) as held:
        intruder = lab.again(run, options=("--nodes=2",)).job
        intruder.ended()
        run.job.slurm("scancel", "--signal=USR1", run.job.number)
        run.signal_arrives(held, signal.SIGUSR1)
    with run.held(10, launch=2):
        run.kill(3)
    return run.finished(), intruder


def preempted_and_a_node_lost(lab: Lab):
    """A job of a higher partition takes the nodes after step 5; later one of them goes down, and its ranks with it."""
    run = lab.train("preempted")
    with run.held(5) as held:
        place = f"--nodelist={run.job.facts()['NodeList']}"
        urgent = lab.submit("--partition=urgent", "--nodes=2", place, "--exclusive", "--wrap", "true")
        run.signal_arrives(held, signal.SIGTERM)
    urgent.succeeded()
    with run.held(10, launch=2):
        [*_, last] = run.job.slurm("scontrol", "show", "hostnames", run.job.facts()["NodeList"]).split()
        run.job.slurm("scontrol", "update", f"nodename={last}", "state=DOWN", "reason=test")
        run.kill(2, 3)
    return run.finished()  # the node comes back by itself: its slurmd still answers


def a_node_less(lab: Lab):
    """After a requeue there is one node where there were two; first a run that is not elastic, resubmitted so."""
    run = lab.train("a_node_less", "training.elastic=true")
    with run.held(5) as held:
        run.job.slurm("scancel", "--signal=USR1", run.job.number)
        run.signal_arrives(held, signal.SIGUSR1)
    run.job.wait_until(lambda facts: facts["JobState"] == "PENDING", "the requeue")
    run.job.slurm("scontrol", "update", f"jobid={run.job.number}", "numnodes=1")
    return run.finished()


def all_ranks_killed_while_saving(lab: Lab):
    """In three saves, at seeded instants; each time ranks start again in the same job."""
    patient = "survival.max_failures=4"  # where each kill hits the save of the same step, no new step lies between them
    run = lab.train("killed_while_saving", patient, options=("--nodes=1",))
    instants, found, struck_s = random.Random(7), [], 0.0
    for launch in (1, 2, 3):
        newest = int(tracker(run.folder) or 0)
        step = SAVE_EVERY * (newest // SAVE_EVERY + 1)
        saving = run.folder / "checkpoints" / f"iter_{step:07d}"
        run.reached(newest + 1, launch)
        ranks = run.ranks()

        def is_saving(saving=saving, struck_s=struck_s):  # a kill before may have left the folder
            return saving.exists() and saving.stat().st_mtime > struck_s

        run.wait_until(is_saving, f"the save of step {step}", interval_s=0.001)
        time.sleep(instants.uniform(0, 0.2))
        struck_s = time.time()
        for process in ranks.values():
            with contextlib.suppress(psutil.NoSuchProcess):  # ended with another one that was killed just now
                process.kill()
        psutil.wait_procs(list(ranks.values()), timeout=PATIENCE_S)
        found.append((newest, step, int(tracker(run.folder) or 0)))
    return run.finished(), found


def a_rank_hangs(lab: Lab):
    """A rank is stopped for good after step 6: no step ends any more."""
    run = lab.train("hangs", "survival.hang_factor=3", "survival.hang_min_s=15", options=("--nodes=1",))
    run.reached(6)
    run.ranks()[1].suspend()
    return run.finished()


def cancelled_damaged_and_resubmitted(lab: Lab):
    """Cancelled by its user after step 10; refused as another recipe and on other nodes; its newest save damaged."""
    run = lab.train("cancelled", options=("--nodes=1",))
    with run.held(10):
        run.job.slurm("scancel", run.job.number)
        state = run.job.ended()["JobState"]
    refused = {
        "another recipe": lab.again(run, "model.ffn_hidden_size=240"),
        "other ranks": lab.again(run, options=("--nodes=2",)),
    }
    for job in refused.values():
        job.job.ended()
    newest = run.folder / "checkpoints" / f"iter_{int(tracker(run.folder)):07d}"
    largest = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    with open(largest, "r+b") as file:
        file.seek(largest.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    return state, refused, newest, lab.again(run).finished()


def a_full_disk(lab: Lab):
    """The run folder's disk, a tmpfs, is full after step 5; then room is made, and the job submitted again."""
    disk = lab.folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", str(disk)]).returncode:
        return None

    def resize(num_bytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={num_bytes}", str(disk)], check=True)

    try:
        run = lab.train("", folder=disk / "run", options=("--nodes=1",))
        with run.held(5):
            resize(shutil.disk_usage(disk).used + 500_000)
        full = run.job.ended(), run.job.said(), tracker(run.folder)
        resize(2_000_000_000)
        again = lab.again(run).finished()
        shutil.copytree(disk / "run", lab.folder / "disk_was_full")
        return full, Run(again.job, lab.folder / "disk_was_full")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def crash_loop(lab: Lab):
    """Every launch loses a rank before its first step."""
    run = lab.train("crash_loop", "survival.max_failures=2", options=("--nodes=1",))
    for launch in (1, 2):

        def launched(launch=launch):
            return len(run.events("launched")) == launch and 1 in run.ranks()

        run.wait_until(launched, f"launch {launch}")
        run.kill(1)
    run.job.ended()
    return run


FLOWS: dict[Callable[[Lab], object], int] = {
    preempted_and_a_node_lost: 2,
    signalled_and_a_rank_killed: 2,
    a_node_less: 2,
    cancelled_damaged_and_resubmitted: 2,
    all_ranks_killed_while_saving: 1,
    a_full_disk: 1,
    a_rank_hangs: 1,
    crash_loop: 1,
}
"""Flow -> the most nodes that it takes at once. The longest come first."""


def tracker(folder: Path) -> str:
    """The step that a resume goes on from, empty where there is none."""
    path = folder / "checkpoints" / "latest_checkpointed_iteration.txt"
    return path.read_text().strip() if path.exists() else ""
