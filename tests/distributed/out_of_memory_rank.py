"""Train as one rank that runs out of a GPU's memory in a step, as CUDA would say; run by test_out_of_memory.py.

python out_of_memory_rank.py RUN_FOLDER STEP
"""

import sys

from megatron_medx.training import worker


def fail_in(step: int) -> None:
    """Let the backward pass of this step ask for more than there is."""
    import torch
    from megatron.core.pipeline_parallel import schedules
    from megatron.training import get_args

    original = schedules.backward_step

    def backward_step(*args, **kwargs):
        if get_args().curr_iteration + 1 == step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.11 GiB. Advice.")
        return original(*args, **kwargs)

    schedules.backward_step = backward_step


if __name__ == "__main__":
    folder, step = sys.argv[1:]
    set_up = worker.set_up_backend

    def set_up_and_fail(*args) -> None:
        set_up(*args)
        fail_in(int(step))

    worker.set_up_backend = set_up_and_fail
    sys.exit(worker.main([folder]))
