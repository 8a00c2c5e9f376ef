"""`medx launch`: a commit copied to a cluster, runs submitted there, and what became of them.

slurm/clusters/NAME.env -> the clean commit -> every point of the sweep checked here -> copied -> checked there, all
of them -> submitted -> followed
"""

import signal
from dataclasses import dataclass
from pathlib import Path

from megatron_medx.config.run import RunConfig
from megatron_medx.errors import ConfigError, MedxError
from megatron_medx.launch.clusters import read_cluster
from megatron_medx.launch.commit import SCRIPT, clean_commit, find_checkout
from megatron_medx.launch.outcome import explain, follow
from megatron_medx.launch.submission import (
    RUNS,
    Copy,
    Submitted,
    check_place,
    check_slurm,
    copy_commit,
    look,
    submit,
)
from megatron_medx.launch.tunnel import NoAnswer, Tunnel
from megatron_medx.terminal import complain, say

FAILED, STOPPED = 1, 128 + signal.SIGINT
"""Exit codes: a job that was submitted has failed; Ctrl-C."""


@dataclass(frozen=True, slots=True)
class Order:
    """A run to launch."""

    words: tuple[str, ...]
    """Behind slurm/pretrain.sh: the recipe, its overrides."""
    config: RunConfig
    """What they make, checked as far as a workstation can."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How it is launched."""

    cluster: str
    nodes: int | None
    time: str | None
    """HH:MM:SS; None for the cluster's default."""
    dry_run: bool
    detach: bool

    @property
    def options(self) -> tuple[str, ...]:
        """Of sbatch."""
        given = {"nodes": self.nodes, "time": self.time}
        return tuple(f"--{name}={value}" for name, value in given.items() if value is not None)


def launch(orders: list[Order], wish: Wish, folder: Path) -> int:
    """Launch runs from the checkout that a folder lies in; return the exit code.

    Returns:
        0 when all jobs succeeded, or were submitted and shall not be followed; FAILED when one failed, STOPPED.

    Raises:
        ConfigError: something is missing, or refused there; nothing is submitted then, but for what the message names.
    """
    for order in orders:
        _check_folder(order.config.run.folder)
    checkout = find_checkout(folder)
    cluster = read_cluster(checkout, wish.cluster)
    copy = Copy(cluster, clean_commit(checkout))
    with Tunnel(checkout, cluster) as tunnel:
        try:
            return _launch(tunnel, checkout, copy, orders, wish)
        except KeyboardInterrupt:
            complain("stopped; jobs that are named above go on, and `squeue --me` there names one that was on its way")
            return STOPPED


def _launch(tunnel: Tunnel, checkout: Path, copy: Copy, orders: list[Order], wish: Wish) -> int:
    """The same, with a way to the cluster."""
    has = look(tunnel, copy)
    check_place(copy, has)
    say(f"commit     {copy.commit.short}  {copy.commit.title}")
    say(f"on         {copy.cluster.place}, {copy.folder}" + (", which is there already" if "copied" in has else ""))
    if wish.dry_run:
        return _dry_run(tunnel, copy, orders, wish, has)
    check_slurm(copy, has)
    if "copied" not in has:
        copy_commit(tunnel, checkout, copy)
        say(f"copied     {_size(copy)}")
    if len(orders) > 1:
        for order in orders:
            submit(tunnel, copy, (*wish.options, "--test-only"), order.words)
    jobs = _submit_all(tunnel, copy, orders, wish)
    if wish.detach:
        _say_how_to_look(copy, jobs)
        return 0
    return _await(tunnel, copy, jobs, orders)


def _size(copy: Copy) -> str:
    return f"{copy.commit.num_files} files, {copy.commit.num_bytes / 1e6:.1f} MB"


def _check_folder(run: str) -> None:
    """A relative folder must lie in what copies of commits share, or the next commit would not find it."""
    if run and not run.startswith(("/", f"{RUNS}/")):
        raise ConfigError(
            f"run.folder={run}, which would lie in the copy of one commit",
            f"a folder in {RUNS}/, which all commits share, or an absolute path of the cluster",
            f"write run.folder={RUNS}/{Path(run).name}",
        )


def _dry_run(tunnel: Tunnel, copy: Copy, orders: list[Order], wish: Wish, has: set[str]) -> int:
    """Say what would be done; where commit and Slurm are there, have the login node check as well."""
    if "copied" not in has:
        say(f"to copy    {_size(copy)}")
    checked_there = has >= {"copied", "slurm"}
    for order in orders:
        say(f"to submit  {copy.submission(wish.options, order.words)}")
        if checked_there:
            tested = submit(tunnel, copy, (*wish.options, "--test-only"), order.words)
            say(f"           {copy.cluster.place} would take it: {copy.path(tested.run)}, nodes: {tested.nodes}")
    if not checked_there:
        missing = "the commit is not there yet" if "slurm" in has else "no Slurm answers there"
        say(f"not asked  what the login node checks (data, disk, nodes, account): {missing}")
    say(f"the job's script is {SCRIPT} of that commit; nothing was copied, nothing was submitted")
    return 0


def _submit_all(tunnel: Tunnel, copy: Copy, orders: list[Order], wish: Wish) -> list[Submitted]:
    jobs: list[Submitted] = []
    for order in orders:
        try:
            job = submit(tunnel, copy, wish.options, order.words)
        except MedxError:
            if jobs:
                complain("submitted before, and they go on: " + ", ".join(f"job {job.number}" for job in jobs))
            raise
        jobs.append(job)
        say(f"job {job.number}  {copy.path(job.run)}  nodes: {job.nodes}")
    return jobs


def _await(tunnel: Tunnel, copy: Copy, jobs: list[Submitted], orders: list[Order]) -> int:
    """Follow the jobs; say how each ended, and of one that failed what is known."""
    steps = {job.number: order.config.training.steps for job, order in zip(jobs, orders, strict=True)}
    try:
        ends = follow(tunnel, copy, jobs, steps, say)
    except KeyboardInterrupt:
        say("no longer followed; what was submitted goes on")
        _say_how_to_look(copy, jobs)
        return STOPPED
    for job in (job for job in jobs if not ends[job.number].succeeded):
        end = ends[job.number]
        complain(f"job {job.number} failed: {end.text(steps[job.number])}{f': {end.why}' if end.why else ''}")
        complain(f"its log: {copy.cluster.place}, {copy.log(job.number)}")
        try:
            complain(explain(tunnel, copy, job))
        except NoAnswer as error:  # the outcome is known all the same
            complain(error.found)
    width = max(len(copy.path(job.run)) for job in jobs)
    for job in jobs:
        say(f"job {job.number}  {copy.path(job.run):<{width}}  {ends[job.number].text(steps[job.number])}")
    return 0 if all(end.succeeded for end in ends.values()) else FAILED


def _say_how_to_look(copy: Copy, jobs: list[Submitted]) -> None:
    """Commands for a shell on the cluster."""
    say(f"to look, on {copy.cluster.place}, in {copy.cluster.folder}:")
    for job in jobs:
        say(f"  medx status {copy.path(job.run)}; tail -f {copy.log(job.number)}; scancel {job.number}")
