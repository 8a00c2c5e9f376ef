"""From a checked configuration to running ranks, on this machine or as one task of `srun`.

Here the run folder is chosen and filled; torch is not imported. Each rank is a process of `worker.py`.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from megatron_medx.config.files import collect_provenance, write_run_yaml
from megatron_medx.config.run import RunConfig
from megatron_medx.data.processor_files import copy_processor
from megatron_medx.errors import CheckpointError, ConfigError, ParallelismError

TRACKER = "latest_checkpointed_iteration.txt"
"""Megatron's pointer to the newest complete checkpoint, written after everything else of a save."""

GRACE_S = 10.0
"""Seconds that the other ranks get to end by themselves after one has failed."""


def launch(config: RunConfig, resume: bool = False) -> int:
    """Run `config.parallel.world_size` ranks and wait for them.

    Args:
        config: checked; `run.folder` may be empty.
        resume: continue the run in its folder from the newest checkpoint.

    Returns:
        0, or 2 where the user can mend it, or 1 for a defect.

    Raises:
        ConfigError, CheckpointError, ParallelismError: the run cannot start.
    """
    if "SLURM_PROCID" in os.environ and "SLURM_NTASKS" in os.environ:
        return _launch_slurm_task(config, resume)
    folder = prepare_folder(config, resume)
    address, port = "127.0.0.1", free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "megatron_medx.training.worker", str(folder), *(["--resume"] if resume else [])],
            env={**os.environ, **rank_environment(rank, rank, config.parallel.world_size, address, port)},
        )
        for rank in range(config.parallel.world_size)
    ]
    try:
        return wait_for_ranks(processes, folder)
    finally:
        for process in processes:
            process.kill()


def _launch_slurm_task(config: RunConfig, resume: bool) -> int:
    """Be the rank that srun started; the first task prepares the folder for all."""
    from megatron_medx.training.worker import run_rank

    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    if size != config.parallel.world_size:
        raise ParallelismError(
            f"srun started {size} tasks, the run is for {config.parallel.world_size} ranks",
            "one task per rank",
            f"add parallel.world_size={size}, or change --ntasks of the allocation",
        )
    folder = Path(config.run.folder or f"runs/{config.run.recipe}")
    if rank == 0:
        folder = prepare_folder(config, resume, folder)
    local_rank = int(os.environ["SLURM_LOCALID"])
    port = int(os.environ.get("MASTER_PORT", 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000))
    os.environ.update(rank_environment(rank, local_rank, size, os.environ["MASTER_ADDR"], port))
    return run_rank(config, folder, resume)


def prepare_folder(config: RunConfig, resume: bool, folder: Path | None = None) -> Path:
    """Choose and fill the run folder: run.yaml, the processor beside the checkpoints, an empty logs folder.

    Nothing that was saved is overwritten: a new run never enters a folder that holds one.
    """
    folder = folder or (resumed_folder(config) if resume else new_folder(config))
    checkpoints = folder / "checkpoints"
    if resume and not (checkpoints / TRACKER).exists():
        raise CheckpointError(
            f"{folder} has no complete checkpoint", "a checkpoint to resume from", "start without --resume"
        )
    checkpoints.mkdir(parents=True, exist_ok=True)
    config.run.folder = str(folder)
    provenance = collect_provenance(sys.argv)
    for place in (folder, checkpoints):
        write_run_yaml(config, place / "run.yaml", provenance)
    processor = Path(config.data.processor or Path(config.data.path) / "processor")
    limits = {"min_pixels": config.data.min_pixels, "max_pixels": config.data.max_pixels}
    copy_processor(processor, checkpoints / "processor", **limits)
    shutil.rmtree(folder / "logs", ignore_errors=True)
    (folder / "logs").mkdir()
    sys.stdout.write(f"run folder       {folder}{'  (resumed)' if resume else ''}\n")
    sys.stdout.flush()
    return folder


def new_folder(config: RunConfig) -> Path:
    """`run.folder`, or the first free one of runs/<recipe>, runs/<recipe>-2, runs/<recipe>-3, ..."""
    if config.run.folder:
        folder = Path(config.run.folder)
        if (folder / "run.yaml").exists():
            raise ConfigError(
                f"run.folder={folder} already holds a run",
                "a folder of its own for a new run",
                "add --resume to continue it, or choose another run.folder",
            )
        return folder
    return next(folder for folder in _numbered(config.run.recipe) if not (folder / "run.yaml").exists())


def resumed_folder(config: RunConfig) -> Path:
    """`run.folder`, or the newest of runs/<recipe>, runs/<recipe>-2, ... that holds a run."""
    if config.run.folder:
        return Path(config.run.folder)
    newest = Path("runs") / config.run.recipe
    for folder in _numbered(config.run.recipe):
        if not (folder / "run.yaml").exists():
            return newest
        newest = folder


def _numbered(recipe: str):
    yield Path("runs") / recipe
    number = 2
    while True:
        yield Path("runs") / f"{recipe}-{number}"
        number += 1


def rank_environment(rank: int, local_rank: int, world_size: int, address: str, port: int) -> dict[str, str]:
    """What torch.distributed and Megatron read to find their place."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """MASTER_PORT where it is set and free, else any free port of this machine."""
    wanted = os.environ.get("MASTER_PORT", "0")
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", int(wanted)))
        except (OSError, ValueError) as error:
            raise ParallelismError(
                f"MASTER_PORT={wanted} cannot be used: {error}",
                "a free port on which the ranks meet",
                "unset MASTER_PORT (a free one is chosen), or set another",
            ) from error
        return probe.getsockname()[1]


def wait_for_ranks(processes: list[subprocess.Popen], folder: Path) -> int:
    """Wait for all ranks; when one fails, end the others and say where to look."""
    deadline = None
    while True:
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
        if all(code is not None for code in codes) or (deadline and time.monotonic() > deadline):
            break
        if failed and deadline is None:
            deadline = time.monotonic() + GRACE_S
        time.sleep(0.1)
    if not failed:
        return 0
    if 2 in codes:
        return 2
    rank = failed[0]
    sys.stderr.write(f"rank {rank} ended with code {codes[rank]}; the end of {folder}/logs/rank_{rank}.log:\n")
    log = folder / "logs" / f"rank_{rank}.log"
    sys.stderr.writelines(f"    {line}\n" for line in log.read_text(errors="replace").splitlines()[-15:])
    return 1
