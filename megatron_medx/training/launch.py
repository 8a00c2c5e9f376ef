"""From a checked configuration to running ranks, on this machine or as one task of `srun`.

torch is not imported here. Each rank is a process of `worker.py`.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from megatron_medx.config.checkpoint_folders import RUN_FILE
from megatron_medx.config.files import read_run_yaml
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import CheckpointError, ParallelismError
from megatron_medx.run_folder.names import LOGS, rank_log
from megatron_medx.terminal import complain, say
from megatron_medx.training.prepare_run import prepare_folder

PORTS = range(20_000, 32_768)
"""Below those that Linux gives to outgoing connections: ranks need seconds to come and listen on the chosen one."""

GRACE_S = 10.0
"""Seconds that the other ranks get to end by themselves after one has failed."""


PREPARE_PATIENCE_S = 3600.0
"""Seconds that the tasks of srun wait for the first one: 66 GB of weights, read and written at 40 MB/s."""

PREPARED_FILE = "prepared"
"""In the folder of logs: the attempt that the run folder is prepared for."""


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
    folder = prepare_folder(config, resume, sys.argv)
    _announce(folder, resume)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no rank outlives its launcher
    address, port = "127.0.0.1", free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "megatron_medx.training.worker", str(folder), *(["--resume"] if resume else [])],
            env={**os.environ, **rank_environment(rank, rank, config.parallel.world_size, address, port)},
            process_group=0,
        )
        for rank in range(config.parallel.world_size)
    ]
    try:
        return wait_for_ranks(processes, folder)
    finally:
        for process in processes:  # with what it started: Megatron's helper for saving outlives a rank that was killed
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


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
    if "MASTER_ADDR" not in os.environ:
        raise ParallelismError(
            "a Slurm task without MASTER_ADDR",
            "the host on which the ranks meet, the same for every task",
            "start with sbatch slurm/pretrain.sh RECIPE, or export MASTER_ADDR before srun",
        )
    config.run.folder = str(config.run_folder)  # one name for all tasks, which cannot agree on a free number
    folder = config.run_folder
    if rank == 0:
        prepare_folder(config, resume, sys.argv)
        _announce(folder, resume)
        (folder / LOGS / PREPARED_FILE).write_text(_slurm_attempt())
    else:
        wait_until_prepared(folder, _slurm_attempt())
        config = read_run_yaml(folder / RUN_FILE)
    local_rank = int(os.environ["SLURM_LOCALID"])
    port = int(os.environ.get("MASTER_PORT", 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000))
    os.environ.update(rank_environment(rank, local_rank, size, os.environ["MASTER_ADDR"], port))
    return run_rank(config, folder, resume)


def _slurm_attempt() -> str:
    """What all tasks of one srun share and no other has: a job may hold several, and may be requeued."""
    return ".".join(os.environ.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "RESTART_COUNT", "STEP_ID"))


def wait_until_prepared(folder: Path, attempt: str, patience_s: float = PREPARE_PATIENCE_S) -> None:
    """Wait until the first task has prepared the run folder in this very attempt.

    Raises:
        CheckpointError: it has not after `patience_s` seconds.
    """
    mark, deadline = folder / LOGS / PREPARED_FILE, time.monotonic() + patience_s
    while not (mark.is_file() and mark.read_text() == attempt):
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"{mark} has not appeared for {patience_s:g} s",
                "a run folder that the first task prepares and every task sees",
                "read what the first task said; put run.folder on a shared disk; convert a large Hugging Face "
                "directory before with `medx convert to-megatron`",
            )
        time.sleep(min(1.0, patience_s))


def _announce(folder: Path, resume: bool) -> None:
    say(f"run folder  {folder}{' (resumed)' if resume else ''}")


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
    """MASTER_PORT where it is set and free, else any free one of PORTS."""
    wanted = os.environ.get("MASTER_PORT")
    for port in [wanted] if wanted else random.sample(PORTS, 20):
        try:
            with socket.socket() as probe:
                probe.bind(("", int(port)))
            return int(port)
        except (OSError, ValueError, OverflowError) as error:
            reason = error
    raise ParallelismError(
        f"MASTER_PORT={port} cannot be used: {reason}",
        "a free port on which the ranks meet",
        "unset MASTER_PORT (a free one is chosen), or set another",
    ) from reason


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
    logs = {rank: folder / LOGS / rank_log(rank) for rank in failed}
    # A rank that lost its peer fails as well: to blame is one that was killed, else one that says something else.
    rank = min(failed, key=lambda rank: (codes[rank] > 0, _lost_its_peer(logs[rank]), rank))
    log = logs[rank]
    complain(f"rank {rank} ended with code {codes[rank]}; the end of {log}:")
    for line in log.read_text(errors="replace").splitlines()[-15:] if log.exists() else ():
        complain(f"    {line}")
    return 1


def _lost_its_peer(log: Path) -> bool:
    return log.exists() and "by peer" in log.read_text(errors="replace")[-2000:]
