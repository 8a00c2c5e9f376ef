"""What holds the memory of a rank: weights, gradients and optimizer states, counted from their tensors."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import megatron.training.training as megatron_loop
from megatron.core import mpu
from megatron.core.utils import unwrap_model
from torch import Tensor
from torch.nn import Module


class MemoryOwners:
    """The model and the optimizer of this rank, once they are built, and what their tensors take."""

    def __init__(self) -> None:
        self.chunks: Sequence[Module] = ()
        self.optimizer: Any = None
        self.stage: int | None = None
        """Pipeline stage of this rank; None as long as nothing is built."""

    def watch(self) -> None:
        """Learn of model and optimizer from `setup_model_and_optimizer`, where Megatron builds them."""
        original = megatron_loop.setup_model_and_optimizer

        def built(*args, **kwargs) -> tuple:
            result = original(*args, **kwargs)
            self.chunks, self.optimizer = result[:2]
            self.stage = mpu.get_pipeline_model_parallel_rank()
            return result

        megatron_loop.setup_model_and_optimizer = built

    def count(self) -> dict[str, int]:
        """Bytes by owner: `weights`, `gradients`, `optimizer`; memory that two of them share is the first one's."""
        seen: set[int] = set()
        tensors = {"weights": self._weights(), "gradients": self._gradients(), "optimizer": self._states()}
        return {owner: _bytes_of(held, seen) for owner, held in tensors.items()}

    def _weights(self) -> Iterator[Tensor]:
        for model in unwrap_model(list(self.chunks)):
            yield from model.parameters()
            yield from model.buffers()

    def _gradients(self) -> Iterator[Tensor]:
        """Megatron's wrapper adds gradients up in buffers of its own; a parameter has its last one until then."""
        for chunk in self.chunks:
            yield from (buffer.grad_data for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers))
            yield from (parameter.grad for parameter in chunk.parameters() if parameter.grad is not None)

    def _states(self) -> Iterator[Tensor]:
        """Main weights and moments of each of Megatron's optimizers; of one without parameters there are none."""
        for wrapper in getattr(self.optimizer, "chained_optimizers", [self.optimizer]):
            if (adam := getattr(wrapper, "optimizer", None)) is None:
                continue
            for group in adam.param_groups:
                yield from group["params"]
            for state in adam.state.values():
                yield from (value for value in state.values() if isinstance(value, Tensor))


def _bytes_of(tensors: Iterable[Tensor], seen: set[int]) -> int:
    """Bytes of the tensors' memory, each piece of it once.

    Args:
        tensors: views of one memory count as one, and whole.
        seen: addresses that are counted already; added to.
    """
    total = 0
    for tensor in tensors:
        memory = tensor.untyped_storage()
        if memory.nbytes() and memory.data_ptr() not in seen:
            seen.add(memory.data_ptr())
            total += memory.nbytes()
    return total
