"""One measured run: the rank that `medx train` starts, with named changes, ended after some steps.

    python -m benchmarks.gpu.train RUN_YAML OUT_JSON --steps N [--change NAME ...]

Prepares the run folder that RUN_YAML names and trains in this process through `training/worker.py`, as `medx train`
does in a process of its own. After step N it writes OUT_JSON (peak memory) and leaves without a checkpoint.

A change replaces a name of Megatron or of ours before anything is built; each is a switch that a run has no key for.
"""

import argparse
import copy
import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_medx.config.files import read_run_yaml
from megatron_medx.training import worker
from megatron_medx.training.local_ranks import free_port, rank_environment
from megatron_medx.training.prepare_run import prepare_folder


def torch_layers() -> None:
    """Plain torch in place of Transformer Engine's layers: attention by SDPA, one segment at a time."""
    from megatron_medx.models import specs

    specs.transformer_engine_usable = lambda: False


def fused_rope() -> None:
    """Rotary of the row by Transformer Engine's kernel, which takes angles, in the place of ours in plain torch."""
    from megatron.core.extensions.transformer_engine import fused_apply_rotary_pos_emb

    from megatron_medx.models import qwen3_vl, row_rotary, vision

    def rotate(t_LND, angles_L11D, *args, **kwargs):
        return fused_apply_rotary_pos_emb(t_LND.unsqueeze(1), angles_L11D, interleaved=False).squeeze(1)

    row_rotary.rotate_row = rotate
    qwen3_vl.cosines_and_sines = vision.cosines_and_sines = lambda angles_L11D, dtype: angles_L11D


def gradient_accumulation_fusion() -> None:
    """Transformer Engine adds weight gradients to the fp32 buffer within the product; the output layer, Megatron's own
    linear, would need Apex for it and stays as it is."""
    from megatron_medx.models import qwen3_vl

    init, linear = qwen3_vl.Qwen3VLModel.__init__, qwen3_vl.ColumnParallelLinear

    @functools.wraps(init)
    def fused(self, model, config, *args, **kwargs):
        config.gradient_accumulation_fusion = True
        init(self, model, config, *args, **kwargs)

    def unfused(*args, config, **kwargs):
        plain = copy.copy(config)
        plain.gradient_accumulation_fusion = False
        return linear(*args, config=plain, **kwargs)

    qwen3_vl.Qwen3VLModel.__init__, qwen3_vl.ColumnParallelLinear = fused, unfused


CHANGES = {change.__name__: change for change in (torch_layers, fused_rope, gradient_accumulation_fusion)}


def end_after(num_steps: int, out: Path) -> None:
    """Leave this process once so many steps are in `metrics.jsonl`."""
    from megatron_medx.training.monitor import StepMonitor

    record = StepMonitor.step

    def counted(self, step, *args, **kwargs):
        record(self, step, *args, **kwargs)
        if step < num_steps:
            return
        out.write_text(json.dumps(_memory()))
        self.close()  # ends the processes that read ahead
        os._exit(0)

    StepMonitor.step = counted


def _memory() -> dict[str, int]:
    """Peak bytes that tensors have held, and that the allocator has taken; empty without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return {}
    return {"peak_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; the exit code is the worker's where the run ends by itself, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.train", description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--change", action="append", choices=tuple(CHANGES), default=[])
    chosen = parser.parse_args(arguments)

    config = read_run_yaml(chosen.config)
    folder = prepare_folder(config, resume=False, command=sys.argv)
    os.environ.update(rank_environment(0, 0, 1, "127.0.0.1", free_port()))
    set_up = worker.set_up_backend

    def set_up_and_change(*args) -> None:
        set_up(*args)  # before it nothing may import Megatron: where there is no GPU it changes what is imported
        for name in chosen.change:
            CHANGES[name]()
        end_after(chosen.steps, chosen.out)

    worker.set_up_backend = set_up_and_change
    return worker.run_rank(config, folder, resume=False)


if __name__ == "__main__":
    sys.exit(main())
