"""What a task can tell of its host without computing anything: versions, GPU, disks, limits, clock."""

import hashlib
import os
import resource
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from megatron_medx.config.checkpoint_folders import RUN_FILE
from megatron_medx.config.files import collect_provenance, read_run_yaml
from megatron_medx.config.memory import checkpoint_bytes
from megatron_medx.config.run import RunConfig
from megatron_medx.preflight.gpu_health import read_health
from megatron_medx.preflight.place import Place

TMP_BYTES = 500 * 10**6
"""Free on /tmp: compiled kernels (Triton, inductor) and sockets of worker processes. They take some 100 MB."""

FOLDER_BYTES = 10**9
"""Free for the run folder where its run.yaml is not written yet; `medx job begin` has counted the checkpoints then."""

SHM_BYTES_TASK = 128 * 10**6
"""Free on /dev/shm for each task: NCCL's buffers between GPUs of a host, some 10 MB for each neighbor."""

DRIVER_FILE = Path("/dev/nvidiactl")
"""There where NVIDIA's driver is loaded and this container or job may use it."""


def host_facts(place: Place, folder: Path) -> dict:
    """Facts of one task; what is the same for all tasks of a host is told by its first one.

    Returns:
        Plain values. `clock_s` is taken first: all tasks are called in the same moment.
    """
    clock_s = time.time()
    facts = {"clock_s": clock_s, "expects_gpus": expects_gpus(os.environ), **gpu_facts(place.local_rank)}
    if place.local_rank:
        return facts
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    adapters = Path("/sys/class/infiniband")
    return facts | {
        "versions": versions(folder),
        "disks": {
            name: {"path": str(path), "free_bytes": shutil.disk_usage(path).free}
            for name, path in disks(folder).items()
            if path.exists()
        },
        "open_files": soft,
        "locked_bytes": None if locked == resource.RLIM_INFINITY else locked,
        "infiniband": sorted(path.name for path in adapters.iterdir()) if adapters.is_dir() else [],
    }


def expects_gpus(environ: Mapping[str, str]) -> bool:
    """Whether GPUs ought to be usable: a driver is loaded, and neither Slurm nor the user has kept them away."""
    if not DRIVER_FILE.exists() or environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles"):
        return False
    return "SLURM_JOB_ID" not in environ or "SLURM_GPUS_ON_NODE" in environ


def disks(folder: Path) -> dict[str, Path]:
    """Name -> a path on each disk that training writes to; of the run folder the nearest one that is there."""
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return {"run folder": existing, "/tmp": Path("/tmp"), "/dev/shm": Path("/dev/shm")}


def disk_needs(folder: Path, most_tasks: int) -> dict[str, int]:
    """Name of a disk -> bytes that must be free: one more checkpoint, and what `most_tasks` of a host share.

    With worker processes, rows come to their rank through /dev/shm: `prefetch_rows` for each worker, of at most
    seq_len_tokens x merge^2 patches, each of so many values of 4 bytes as the tower takes.
    """
    if not (folder / RUN_FILE).is_file():
        return {"run folder": FOLDER_BYTES, "/tmp": TMP_BYTES, "/dev/shm": most_tasks * SHM_BYTES_TASK}
    config = read_run_yaml(folder / RUN_FILE)
    shared = SHM_BYTES_TASK + config.data.num_workers * config.data.prefetch_rows * _row_bytes(config)
    return {"run folder": checkpoint_bytes(config), "/tmp": TMP_BYTES, "/dev/shm": most_tasks * shared}


def _row_bytes(config: RunConfig) -> int:
    vision = config.model.vision
    patches = config.data.seq_len_tokens * vision.merge_size**2
    return (config.data.max_row_patches or patches) * vision.patch_dim * 4


def versions(folder: Path) -> dict[str, str]:
    """Everything that must be the same on all hosts: packages, commit, the run's file, NCCL as it was loaded."""
    import torch

    provenance = collect_provenance([])
    found = {**provenance["versions"], "CUDA of torch": torch.version.cuda or "none"}
    if provenance["commit"] != "unknown":  # no git on this host says nothing about the checkout
        found["commit"] = provenance["commit"]
    if torch.distributed.is_nccl_available():
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))  # of the library found here, not of the build
    run_file = folder / RUN_FILE
    if run_file.is_file():
        found[RUN_FILE] = hashlib.sha256(run_file.read_bytes()).hexdigest()[:12]
    return found


def gpu_facts(local_rank: int) -> dict:
    """How many GPUs torch sees, and of this task's one name, memory and health; nothing but a context is on it yet."""
    import torch

    if not torch.cuda.is_available():
        return {"num_gpus": 0}
    facts: dict = {"num_gpus": torch.cuda.device_count()}
    if local_rank >= facts["num_gpus"]:
        return facts
    torch.cuda.set_device(local_rank)  # or contexts of all tasks would be made on the first GPU
    properties = torch.cuda.get_device_properties(local_rank)
    facts |= {"name": properties.name, "memory_bytes": properties.total_memory, "uuid": f"GPU-{properties.uuid}"}
    return facts | {"health": read_health(facts["uuid"])}
