"""The parts of a step by name, as a trace, NVIDIA Nsight Systems and the summaries show them.

`named_parts` wraps what each part runs in, and unwraps it at its end: a run that is not profiled has no trace of it.
A part holds no other: time belongs to the innermost one.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup
from megatron.core.pipeline_parallel import schedules
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.utils import get_model_config, unwrap_model
from torch.nn import Module

from megatron_medx.data.loader import RowLoader
from megatron_medx.models import qwen3_vl
from megatron_medx.training.profiling.vocabulary import (
    ATTENTION,
    BACKWARD,
    DATA_WAIT,
    DECODER,
    EMBEDDING,
    EXPERTS,
    GRADIENT_REDUCTION,
    IMAGE_EXCHANGE,
    LOSS,
    MERGERS,
    MLP,
    OPTIMIZER,
    OUTPUT,
    PIPELINE,
    TOWER,
    WEIGHT_GATHERING,
)

OpenRange = Callable[[str], AbstractContextManager]
"""Opens a range of this name around what runs in it."""

MODULES = {"vision": TOWER, "merger": MERGERS, "embedding": EMBEDDING, "decoder": DECODER, "output_layer": OUTPUT}
"""Attribute of the model on this stage -> its part."""


@contextlib.contextmanager
def named_parts(chunks: Sequence[Module], optimizer: Any, open_range: OpenRange) -> Iterator[None]:
    """Open a range around each part of the steps that are made within.

    Args:
        chunks: of the model on this rank, as Megatron wraps them.
        optimizer: Megatron's.
        open_range: called with a part's name.
    """
    with contextlib.ExitStack() as stack:
        for owner, attribute, part in _places(chunks, optimizer):
            stack.enter_context(_named(owner, attribute, part, open_range))
        yield


def _places(chunks: Sequence[Module], optimizer: Any) -> Iterator[tuple[Any, str, str]]:
    """Where each part begins and ends: (owner, name of its function, part)."""
    for model in unwrap_model(list(chunks)):
        for attribute, part in MODULES.items():
            if isinstance(module := getattr(model, attribute, None), Module):
                yield module, "forward", part
        for layer in model.decoder.layers:
            yield layer.self_attention, "forward", ATTENTION
            yield layer.mlp, "forward", EXPERTS if model.sizes.is_moe else MLP
        yield model, "compute_language_model_loss", LOSS
    yield qwen3_vl, "encode_images", IMAGE_EXCHANGE
    yield RowLoader, "__next__", DATA_WAIT
    yield P2PCommunicator, "_communicate", PIPELINE
    yield schedules, "backward_step", BACKWARD
    for name in ("start_grad_sync", "finish_grad_sync"):
        yield _ParamAndGradBucketGroup, name, GRADIENT_REDUCTION
    for name in ("start_param_sync", "finish_param_sync"):
        yield _ParamAndGradBucketGroup, name, WEIGHT_GATHERING
    yield get_model_config(chunks[0]), "finalize_model_grads_func", GRADIENT_REDUCTION
    yield optimizer, "step", OPTIMIZER


@contextlib.contextmanager
def _named(owner: Any, attribute: str, part: str, open_range: OpenRange) -> Iterator[None]:
    original, is_own = getattr(owner, attribute), attribute in vars(owner)

    @functools.wraps(original)
    def within(*args, **kwargs):
        with open_range(part):
            return original(*args, **kwargs)

    setattr(owner, attribute, within)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, attribute, original)
        else:
            delattr(owner, attribute)  # the class has it
