"""A GPU that runs out of memory: what held it, what would help, and a snapshot of its allocations.

Before the first step of a launch it is the user's to mend, and the run stops. Later it may be fragmented memory, which
a new start heals: then the run fails as of any other error, and is started again as often as `survival` says.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from megatron.training import get_args

from megatron_medx.config.checks import check
from megatron_medx.config.memory import stage_memory, worst_rank
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import MedxError, ParallelismError
from megatron_medx.run_folder import events
from megatron_medx.run_folder.names import PROFILE, memory_file
from megatron_medx.training.profiling.memory_owners import MemoryOwners

MAX_HISTORY = 100_000
"""Last allocations and releases that the history keeps, each with its stack."""

NUM_REMEDIES = 3
"""Overrides that are named, those that save most by estimate."""

FRAGMENTED_SHARE = 0.1
"""Of the memory that the allocator holds: with more of it idle, fragments are worth a word."""

ACTIVATIONS = ("vision activations", "decoder activations", "logits", "communication")
"""Kinds of the estimate that no tensor outlives a step of; they are not counted but what remains."""


@contextlib.contextmanager
def explained(config: RunConfig, folder: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Explain a `torch.OutOfMemoryError` of the training within, record the event, leave a snapshot.

    Args:
        config: the run.
        folder: of the run.
        tell: shows an explanation of what is then raised as it came.

    Raises:
        ParallelismError: no step of this launch was done.
        torch.OutOfMemoryError: some were.
    """
    owners, rank = MemoryOwners(), int(os.environ["RANK"])
    owners.watch()
    if config.log.memory_history:
        torch.cuda.memory._record_memory_history(max_entries=MAX_HISTORY)
    try:
        yield
    except torch.OutOfMemoryError as error:
        began = getattr(get_args(), "iteration", 0)  # set when a checkpoint is loaded, or none is
        done = getattr(get_args(), "curr_iteration", began)  # set by the loop
        what = largest_owner(owners.count(), _estimate(config, owners), _allocated_bytes())
        events.append(folder, "out_of_memory", step=done + 1, rank=rank, what=what)
        snapshot = _snapshot(folder / PROFILE / memory_file(rank)) if config.log.memory_history else ""
        explanation = ParallelismError(
            f"rank {rank} ran out of memory in step {done + 1}: {_first_sentences(error)}; {what}{snapshot}",
            "a step that fits the memory of every rank",
            ways_out(config, *_idle_and_reserved_bytes()),
        )
        if done == began:
            raise explanation from error
        tell(str(explanation))
        raise


def largest_owner(counted: dict[str, int], estimate: dict[str, int], allocated_bytes: int | None) -> str:
    """A sentence on what holds most of a rank's memory.

    Args:
        counted: bytes by owner, from `MemoryOwners.count`.
        estimate: bytes by kind, from config/memory.py.
        allocated_bytes: of all tensors, those of the step included; None where nobody counts them: on a CPU.

    Example: 2 GB of weights and 1 GB of gradients of 10 GB leave 7 GB, of which the estimate says what most of it is.
    """
    kinds = {kind: size for kind, size in estimate.items() if kind in ACTIVATIONS}
    rest = sum(kinds.values()) if allocated_bytes is None else allocated_bytes - sum(counted.values())
    step = "activations and temporary tensors"
    owners = {**counted, step: rest}
    total, largest = sum(owners.values()), max(owners, key=owners.__getitem__)
    listed = " + ".join(f"{owner} {_gigabytes(size)}" for owner, size in owners.items())
    by_estimate = " (by estimate)" if allocated_bytes is None else ""
    said = f"{_gigabytes(total)} GB were held = {listed}{by_estimate}; most by {largest}"
    if largest != step:
        return said
    kind = max(kinds, key=kinds.__getitem__)
    return f"{said}, of which {kind} are the largest by estimate, {_gigabytes(kinds[kind])} GB"


def ways_out(config: RunConfig, idle_bytes: int = 0, reserved_bytes: int = 0) -> str:
    """What to set: the legal changes of one field that lower the estimate of the worst rank most.

    Args:
        config: the run.
        idle_bytes, reserved_bytes: what no tensor has of what the GPU's allocator holds, and all that it holds.
    """
    before = sum(worst_rank(config).values())
    saved = {change: before - after for change in _changes(config) if (after := _bytes_with(config, change))}
    best = sorted((change for change in saved if saved[change] > 0), key=lambda change: -saved[change])[:NUM_REMEDIES]
    if not best:
        return "take more GPUs, or lower data.seq_len_tokens or data.max_pixels, which makes it another run"
    named = " or ".join(f"{change} ({_gigabytes(saved[change])} GB less by estimate)" for change in best)
    if idle_bytes > FRAGMENTED_SHARE * reserved_bytes:
        fragments = f"{_gigabytes(idle_bytes)} of {_gigabytes(reserved_bytes)} GB lie idle in fragments"
        named = f"PYTORCH_ALLOC_CONF=expandable_segments:True in the environment ({fragments}) or {named}"
    return f"set {named}, then start again; `medx plan` compares grids"


def _changes(config: RunConfig) -> Iterator[str]:
    yield from ("training.recompute=selective", "training.recompute=full", "training.recompute_vision=full")
    for axis in ("tensor", "pipeline", "context"):
        yield f"parallel.{axis}={2 * getattr(config.parallel, axis)}"


def _bytes_with(config: RunConfig, change: str) -> int | None:
    """Estimate of the worst rank after a change; None where the change is not legal."""
    try:
        changed = apply_overrides(config, [change])
        check(changed)
    except MedxError:
        return None
    return sum(worst_rank(changed).values())


def _estimate(config: RunConfig, owners: MemoryOwners) -> dict[str, int]:
    return worst_rank(config) if owners.stage is None else stage_memory(config, owners.stage)


def _allocated_bytes() -> int | None:
    """Of all tensors on the GPU; frames of the error's traceback still hold those of the step."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else None


def _idle_and_reserved_bytes() -> tuple[int, int]:
    if not torch.cuda.is_available():
        return 0, 0
    reserved = torch.cuda.memory_reserved()
    return reserved - torch.cuda.memory_allocated(), reserved


def _snapshot(path: Path) -> str:
    """Write the history of allocations; says where it lies."""
    path.parent.mkdir(exist_ok=True)
    torch.cuda.memory._dump_snapshot(str(path))
    return f"; its allocations: {path}, for docs.pytorch.org/memory_viz"


def _first_sentences(error: torch.OutOfMemoryError) -> str:
    """What could not be allocated, on which GPU; torch's message goes on with advice."""
    return ". ".join(str(error).split(". ")[:2])


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g}"
