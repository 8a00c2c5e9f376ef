"""`medx doctor`: what is installed on this machine and what a run would use of it.

Looks at metadata, files and PATH; of the heavy packages only torch is imported, to ask for its devices.
Warns of the one trap that cannot be seen from a version: `apex` on PyPI is a web package, and
Megatron-Core takes whatever is called `apex` for NVIDIA's.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from megatron_medx.config.precision import FP8_RECIPES, Fp8Machine, machine_problem

WIDTH = 20
"""Width of the first column, characters."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    """What was looked for."""
    state: str
    """What there is: a version, a place, or `missing`."""
    warning: str = ""
    """What to do about it, where something is wrong."""


def report() -> list[str]:
    """Return the lines of the report: findings, then what will be used, then warnings."""
    findings = survey()
    lines = [f"{finding.name:<{WIDTH}}{finding.state}" for finding in findings]
    lines += ["", *will_use(cuda_works(), find_version("transformer-engine") is not None)]
    return lines + [f"warning: {finding.warning}" for finding in findings if finding.warning]


def survey() -> list[Finding]:
    """Look for everything a run may use; nothing that is found is started."""
    return [
        Finding("Python", platform.python_version()),
        *(required(name) for name in ("torch", "megatron-core", "transformers", "pydicom")),
        cuda(),
        nccl(),
        optional("Transformer Engine", "transformer-engine", "the local layers are used"),
        fp8(),
        apex(),
        dali(),
        slurm(),
    ]


def will_use(cuda_is_there: bool, transformer_engine_is_there: bool) -> list[str]:
    """Return the two lines that say where a run computes and with which layers."""
    backend = "CUDA over NCCL" if cuda_is_there else "CPU over gloo"
    engine = cuda_is_there and transformer_engine_is_there
    layers = "Transformer Engine" if engine else "local (torch's scaled_dot_product_attention)"
    return [f"{'will run on:':<{WIDTH}}{backend}", f"{'layers:':<{WIDTH}}{layers}"]


def required(name: str) -> Finding:
    """Find a package that no run can do without."""
    version = find_version(name)
    warning = f"{name} is missing: run `make` in the checkout, or pip install -c constraints.txt {name}"
    return Finding(name, version or "missing", "" if version else warning)


def optional(title: str, package: str, otherwise: str) -> Finding:
    """Find a package that is used where it is installed."""
    return Finding(title, find_version(package) or f"missing: {otherwise}")


def cuda() -> Finding:
    """Describe the driver and the GPUs that torch can use."""
    if find_version("torch") is None:
        return Finding("CUDA", "unknown without torch")
    import torch

    built = f"torch built for {torch.version.cuda}" if torch.version.cuda else "torch built without CUDA"
    driver = driver_version()
    if not torch.cuda.is_available():
        reason = f"driver {driver}, but torch sees no GPU" if driver else "no driver"
        warning = f"CUDA: {reason}; compare the driver with the CUDA version torch was built for" if driver else ""
        return Finding("CUDA", f"{reason}; {built}", warning)
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    counted = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return Finding("CUDA", f"{counted}; driver {driver or 'unknown'}; {built}")


def cuda_works() -> bool:
    """Return whether torch can compute on a GPU here."""
    if find_version("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def nccl() -> Finding:
    """Find the NCCL that torch brings; it is used only with a GPU."""
    if find_version("torch") is None:
        return Finding("NCCL", "unknown without torch")
    import torch

    if not torch.distributed.is_available() or not torch.distributed.is_nccl_available():
        return Finding("NCCL", "missing in this torch")
    return Finding("NCCL", ".".join(map(str, torch.cuda.nccl.version())))


def fp8() -> Finding:
    """Say with which of `precision.fp8` a run here could train, and what there is for it."""
    if find_version("torch") is None:
        return Finding("FP8", "unknown without torch")
    import torch

    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    machine = Fp8Machine(find_version("transformer-engine"), capability, torch.version.cuda)
    problems = {name: machine_problem(name, machine) for name in FP8_RECIPES}
    usable = ", ".join(name for name, problem in problems.items() if problem is None) or "none"
    lacking = [f"{name} needs {problem.needed}" for name, problem in problems.items() if problem]
    return Finding("FP8", "; ".join([usable, *lacking[:1]]))


def apex() -> Finding:
    """Tell NVIDIA's Apex from the unrelated PyPI package of that name, without importing either."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return Finding("Apex", "missing: torch's own optimizers and norms are used")
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    place = folders[0] if folders else spec.origin
    version = find_version("apex") or "of unknown version"
    if any((folder / "optimizers").is_dir() for folder in folders):
        fused = "with" if importlib.util.find_spec("amp_C") else "without"
        return Finding("Apex", f"NVIDIA's, {version}, {fused} fused kernels, in {place}")
    return Finding(
        "Apex",
        f"NOT NVIDIA's: an unrelated package, {version}, in {place}",
        f"the package called apex in {place} is not NVIDIA Apex (no apex/optimizers), and Megatron-Core would import "
        "it: pip uninstall apex",
    )


def dali() -> Finding:
    """Find NVIDIA DALI; its package is named after a CUDA version."""
    names = [name for name in ("nvidia-dali-cuda130", "nvidia-dali-cuda120") if find_version(name)]
    if not names:
        return Finding("DALI", "missing: images are decoded by Pillow")
    return Finding("DALI", f"{find_version(names[0])} ({names[0]})")


def slurm() -> Finding:
    """Find Slurm's commands, and the job this shell is in."""
    missing = [name for name in ("sbatch", "sinfo", "srun") if shutil.which(name) is None]
    if missing:
        return Finding("Slurm", f"missing: no {', '.join(missing)} on PATH; `medx train` starts local processes")
    job = os.environ.get("SLURM_JOB_ID")
    return Finding("Slurm", f"{shutil.which('sbatch')}; {f'inside job {job}' if job else 'outside a job'}")


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver, None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.split("\n")[0].strip() or None


def find_version(package: str) -> str | None:
    """Return the installed version of a distribution, None when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
