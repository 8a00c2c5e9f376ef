"""What a training checkpoint itself says about the run that wrote it: its grid, and how many rows it had seen.

run.yaml is that of the newest launch, and a run may change its grid when it resumes; Megatron's arguments, which every
checkpoint keeps beside the tensors, are those of the step. They are a pickle of arbitrary classes: none but plain
containers is brought to life here, so that neither Megatron is imported nor code of the file is run.
"""

import argparse
import collections
import io
import pickle
import types
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemReader

from megatron_medx.errors import CheckpointError

COMMON_STATE_KEY = "common_state/shard_0_1"
COMMON_STATE_FILE = "common.pt"
"""Where megatron-core before 0.19 kept the same."""

GRID_ARGUMENTS = {
    "world_size": "world_size",
    "tensor": "tensor_model_parallel_size",
    "pipeline": "pipeline_model_parallel_size",
    "virtual_pipeline": "virtual_pipeline_model_parallel_size",
    "first_stage_layers": "decoder_first_pipeline_num_layers",
    "last_stage_layers": "decoder_last_pipeline_num_layers",
    "context": "context_parallel_size",
    "expert": "expert_model_parallel_size",
    "data": "data_parallel_size",
}
"""Our name of an axis -> Megatron's argument, as it stands in the file."""

_ALLOWED = {
    ("argparse", "Namespace"): argparse.Namespace,
    ("collections", "OrderedDict"): collections.OrderedDict,
}


def run_state(folder: Path) -> dict:
    """Grid and rows of the run that wrote a folder with tensors.

    Args:
        folder: an iter_ or release folder whose index could be read.
    Returns:
        `grid` (names of GRID_ARGUMENTS -> sizes, None where not set) and `consumed_rows`; both None where the
        checkpoint holds no arguments, as a converted one.
    Raises:
        CheckpointError: the state cannot be read.
    """
    content = _stored(folder)
    if content is None:
        return {"grid": None, "consumed_rows": None}
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=False, pickle_module=_PLAIN_PICKLE)
    except Exception as error:  # what garbage makes unpickling raise is not limited to a few classes
        raise _damaged(f"the common state in {folder} cannot be read: {error}") from None
    state = state[0] if isinstance(state, list) and state else state
    arguments = state.get("args") if isinstance(state, dict) else None
    if not isinstance(arguments, argparse.Namespace):
        return {"grid": None, "consumed_rows": None}
    return {
        "grid": {name: getattr(arguments, argument, None) for name, argument in GRID_ARGUMENTS.items()},
        "consumed_rows": getattr(arguments, "consumed_train_samples", None),
    }


def _stored(folder: Path) -> bytes | None:
    """The bytes of the state; None where the checkpoint has none."""
    if (folder / COMMON_STATE_FILE).is_file():
        return (folder / COMMON_STATE_FILE).read_bytes()
    places = FileSystemReader(folder).read_metadata().storage_data
    place = next((stored for index, stored in places.items() if index.fqn == COMMON_STATE_KEY), None)
    if place is None:
        return None
    path = folder / place.relative_path
    if not path.is_file():
        raise _damaged(f"{path}, which holds the common state, is absent")
    with path.open("rb") as file:
        file.seek(place.offset)
        return file.read(place.length)


class _StandIn:
    """In place of an object of any other class: takes whatever a pickle does to it, and keeps nothing."""

    def __init__(self, *args, **kwargs):
        """Ignore what it is built from."""

    def __setstate__(self, state):
        """Ignore the attributes."""

    def __setitem__(self, key, value):
        """Ignore an entry."""

    def append(self, item):
        """Ignore an item."""

    def extend(self, items):
        """Ignore the items."""


class _PlainUnpickler(pickle.Unpickler):
    """Builds nothing but what _ALLOWED names."""

    def find_class(self, module, name):
        return _ALLOWED.get((module, name), _StandIn)


def _load(file, **options):
    return _PlainUnpickler(file, **options).load()


_PLAIN_PICKLE = types.SimpleNamespace(Unpickler=_PlainUnpickler, load=_load, __name__="plain_pickle")
"""What `torch.load` takes for a pickle module."""


def _damaged(found: str) -> CheckpointError:
    return CheckpointError(found, "a complete checkpoint", "name an earlier iter_ folder, or copy it again")
