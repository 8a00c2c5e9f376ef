"""The one place that lets Megatron-Core run without CUDA, over gloo.

`enable_cpu_backend()` is called before anything of Megatron is built. Where a GPU is, it does nothing. Where none is,
it answers the CUDA questions Megatron asks (`PATCHES`, each with its reason) and maps device arguments to the CPU; the
arithmetic, the communication and the checkpoints stay Megatron's own. `torch.cuda.is_available()` stays False: turning
it on would send torch itself (optimizers, data loaders, dynamo) into CUDA calls. Written against megatron-core 0.19.2;
`tests/unit/parallel/test_cpu_backend.py` fails when a newer one makes a patch needless or needs another.
"""

import contextlib
import functools
import importlib
import os
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.overrides import TorchFunctionMode

from megatron_medx.parallel.lone_rank import among_others, coalesced_among_others
from megatron_medx.parallel.torch_adamw import FusedAdamW, with_initial_state, with_own_steps, without_step

_CPU = torch.device("cpu")

ENVIRONMENT = {
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # Megatron's argument check asks for it under tensor parallelism
    "TORCHDYNAMO_DISABLE": "1",  # Megatron's jit_fuser is torch.compile, which costs a C++ build per function on CPU
}
"""Set where unset, before megatron is imported."""


class _Stream:
    """Stands in for a CUDA stream: work on the CPU is done when the call returns."""

    def __init__(self, *args, **kwargs):
        pass

    def synchronize(self) -> None:
        """Nothing is ever pending."""

    def wait_stream(self, stream) -> None:
        """Nothing is ever pending."""

    def record_event(self) -> "_Stream":
        """The expert dispatcher only synchronizes with the event."""
        return self


def _no_op(*args, **kwargs) -> None:
    return None


def _zero(*args, **kwargs) -> int:
    return 0


def _same_module(module: torch.nn.Module, device=None) -> torch.nn.Module:
    return module


def _properties(*args) -> types.SimpleNamespace:
    return types.SimpleNamespace(major=9)  # Hopper, the generation that the checks are met for


def _get_rng_state(*args, **kwargs) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *args, **kwargs) -> None:
    torch.set_rng_state(state)


def _allow_no_cuda(initialize_megatron: Callable) -> Callable:
    return functools.partial(initialize_megatron, allow_no_cuda=True)


@dataclass(frozen=True, slots=True)
class Patch:
    """One name that is replaced.

    `module` may end in `:Class`. `replacement` is the new object, or, with `wraps=True`, a function from the old object
    to the new one.
    """

    module: str
    name: str
    replacement: object
    reason: str
    wraps: bool = False

    def owner(self) -> object:
        """The module or class that holds the name."""
        module, _, attribute = self.module.partition(":")
        imported = importlib.import_module(module)
        return getattr(imported, attribute) if attribute else imported


def _l2_norm(chunk_size, noop_flag, tensor_lists, per_tensor, *args) -> tuple[torch.Tensor, None]:
    """Norm of all tensors together: in float32 of 1,024 values at a time, of those in float64.

    Torch's float32 sum is off by 1e-4 at 2^18 values; in float64 it would copy every tensor first.
    """
    norms = [torch.zeros(1, dtype=torch.float64)]
    for tensor in tensor_lists[0]:
        for part in tensor.flatten().tensor_split([tensor.numel() // 1024 * 1024]):
            norms.append(torch.linalg.vector_norm(part.view(-1, min(1024, max(1, part.numel()))), dim=1).double())
    return torch.linalg.vector_norm(torch.cat(norms)).float()[None], None


def _scale(chunk_size, noop_flag, tensor_lists, scale: float) -> None:
    """Multiply the tensors of the first list, which are those of the second, where they lie."""
    torch._foreach_mul_(tensor_lists[0], scale)


def _as_on_cpu(tensor, as_numpy: bool = False, record_stream: bool = False):
    return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor


def _forking_caller(queue):
    """Megatron's former way to save beside training: a fork, which has the memory as it was."""
    from megatron.core.dist_checkpointing.strategies.async_utils import TemporalAsyncCaller

    return TemporalAsyncCaller()


_ASYNC_CALLS = "megatron.core.dist_checkpointing.strategies.async_utils:AsyncCallsQueue"
_BUFFERS = "megatron.core.distributed.param_and_grad_buffer"
_OPTIMIZER = "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer"

PATCHES = (
    Patch("torch.cuda", "current_device", lambda: _CPU, "buffers and RNG states are created on it"),
    Patch("torch.cuda", "set_device", _no_op, "initialize_megatron binds each rank to a GPU"),
    Patch("torch.cuda", "device_count", lambda: 1, "ranks per node are checked against it"),
    Patch("torch.cuda", "synchronize", _no_op, "timers and schedules wait for kernels"),
    Patch("torch.cuda", "empty_cache", _no_op, "called before each save"),
    Patch("torch.cuda", "memory_allocated", _zero, "logged after the first step"),
    Patch("torch.cuda", "max_memory_allocated", _zero, "logged after the first step"),
    Patch("torch.cuda", "memory_reserved", _zero, "logged after the first step"),
    Patch("torch.cuda", "max_memory_reserved", _zero, "logged after the first step"),
    Patch("torch.cuda", "get_device_properties", _properties, "the argument check reads the chip's generation"),
    Patch("torch.cuda", "Stream", _Stream, "side streams of gradient reduction and checkpointing"),
    Patch("torch.cuda", "stream", lambda stream: contextlib.nullcontext(), "side streams are entered as contexts"),
    Patch("torch.cuda", "current_stream", lambda *args: _Stream(), "side streams wait for it"),
    Patch("torch.cuda", "manual_seed", torch.manual_seed, "the per-rank RNG tracker seeds the device generator"),
    Patch("torch.cuda", "get_rng_state", _get_rng_state, "RNG states are saved in checkpoints"),
    Patch("torch.nn:Module", "cuda", _same_module, "stages are moved to the GPU after they are built"),
    Patch("megatron.core.tensor_parallel.random", "_get_cuda_rng_state", _get_rng_state, "RNG tracker's fork"),
    Patch("megatron.core.tensor_parallel.random", "_set_cuda_rng_state", _set_rng_state, "RNG tracker's fork"),
    Patch(
        "megatron.core.transformer.moe.token_dispatcher",
        "maybe_move_tensor_to_cpu",
        _as_on_cpu,
        "leaves what is on the CPU a tensor, all-to-all over gloo wants its split sizes as numbers",
    ),
    Patch("megatron.core.datasets.utils", "compile_helpers", _no_op, "runs make inside the installed wheel"),
    Patch("megatron.training.training", "initialize_megatron", _allow_no_cuda, "asserts CUDA if not told", wraps=True),
    Patch(
        "megatron.core.optimizer.clip_grads",
        "l2_norm_impl",
        _l2_norm,
        "inexact in float32, so that clipping would depend on the grid",
    ),
    Patch(
        "megatron.core.optimizer.clip_grads",
        "multi_tensor_scale_impl",
        _scale,
        "the one for where Apex is missing makes each product in new memory and copies it back",
    ),
    Patch(_ASYNC_CALLS, "warmup_persistent_caller", _no_op, "the worker picks its GPU among none and dies"),
    Patch(
        _ASYNC_CALLS,
        "_get_async_caller",
        _forking_caller,
        "the worker would write tensors on the CPU, which it shares, while the next step changes them",
    ),
    Patch(_BUFFERS, "dist_reduce_scatter_func", among_others, "gloo copies the buffer of a rank alone", wraps=True),
    Patch(_BUFFERS, "dist_all_gather_func", among_others, "gloo copies the buffer of a rank alone", wraps=True),
    Patch(_BUFFERS, "_coalescing_manager", coalesced_among_others, "must coalesce something", wraps=True),
    Patch("torch.optim", "AdamW", FusedAdamW, "Megatron does not ask for torch's fused one, which takes a third"),
    Patch(_OPTIMIZER, "state_dict", with_initial_state, "torch's AdamW has no state before its first step", wraps=True),
    Patch(_OPTIMIZER, "load_state_dict", with_own_steps, "torch's AdamW counts steps per parameter", wraps=True),
    Patch(
        _OPTIMIZER,
        "_set_main_param_and_optimizer_states",
        without_step,
        "torch's AdamW counts steps per parameter",
        wraps=True,
    ),
)


class CudaAsCpu(TorchFunctionMode):
    """Maps every CUDA device argument to the CPU, for all torch functions called while it is active."""

    _STAY = frozenset({torch.Tensor.cuda, torch.Tensor.pin_memory})
    _LOOKED_AT = _STAY | {torch.Tensor.to, torch.Tensor.type}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Run `func` with CUDA devices replaced; `tensor.type()` answers the CUDA name that Megatron compares with."""
        if not kwargs and func not in self._LOOKED_AT:  # most calls
            return func(*args)
        kwargs = dict(kwargs or {})
        if func in self._STAY:
            return args[0]
        kwargs.pop("pin_memory", None)
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"])
        if func is torch.Tensor.to:
            args = (args[0], *(_on_cpu(arg) for arg in args[1:]))
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # DistributedOptimizer and gradient clipping compare this string with torch.cuda.FloatTensor.
            return func(*args).replace("torch.", "torch.cuda.")
        return func(*args, **kwargs)


def _on_cpu(device):
    """The CPU for anything that names a CUDA device, `device` itself otherwise."""
    names_cuda = (
        (isinstance(device, int) and not isinstance(device, bool))
        or (isinstance(device, str) and device.startswith("cuda"))
        or (isinstance(device, torch.device) and device.type == "cuda")
    )
    return _CPU if names_cuda else device


_active: CudaAsCpu | None = None


def cpu_backend_needed() -> bool:
    """True where torch sees no GPU."""
    return not torch.cuda.is_available()


def enable_cpu_backend(announce: Callable[[str], None] | None = None) -> bool:
    """Make this process able to run Megatron on the CPU; without effect where a GPU is, or when called again.

    Args:
        announce: receives the one line that says the backend is on.

    Returns:
        True where the backend is active.
    """
    global _active
    if not cpu_backend_needed():
        return False
    if _active is None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # All imports come first: dynamo's import-time tables refuse one stand-in under several torch.cuda names.
        owners = [patch.owner() for patch in PATCHES]
        for patch, owner in zip(PATCHES, owners, strict=True):
            old = getattr(owner, patch.name)  # a name that is gone must fail here, not be created
            setattr(owner, patch.name, patch.replacement(old) if patch.wraps else patch.replacement)
        torch.compiler.set_stance("force_eager")  # for what was compiled before TORCHDYNAMO_DISABLE was set
        _active = CudaAsCpu()
        _active.__enter__()
    if announce:
        announce(f"CPU backend on: no CUDA device, Megatron-Core runs over gloo ({len(PATCHES)} names patched)")
    return True
