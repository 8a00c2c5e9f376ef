"""Run a checkpoint in the Megatron network, as a process of its own: loaded by Megatron's own loader, one rank.

    python -m megatron_medx.checkpoint.megatron_logits CKPT INPUTS.pt OUT.pt

A process of its own, because the CPU backend changes torch for a whole process and Megatron's groups are global.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from megatron_medx.checkpoint.megatron_directory import MegatronCheckpoint


def megatron_logits(checkpoint: MegatronCheckpoint, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits (S, V), fp32, of the Megatron network on one row that holds one sample.

    Args:
        checkpoint: opened weights.
        inputs: `input_ids` (1, S), `positions` (3, S), `pixel_values` (P, C) and `image_grid_thw` (I, 3).

    Raises:
        RuntimeError: the network could not be run; its output is in the message.
    """
    with tempfile.TemporaryDirectory() as scratch:
        inputs_file, out = Path(scratch) / "inputs.pt", Path(scratch) / "logits.pt"
        torch.save(inputs, inputs_file)
        words = [sys.executable, "-m", __name__, str(checkpoint.folder), str(inputs_file), str(out)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the Megatron network of {checkpoint.folder} did not run:\n{done.stderr[-4000:]}")
        return torch.load(out)


def main(checkpoint: str, inputs: str, out: str) -> None:
    """Load, run, write the logits."""
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()
    network = _load(MegatronCheckpoint(Path(checkpoint)))
    tensors = {name: value.to(torch.cuda.current_device()) for name, value in torch.load(inputs).items()}
    tokens_1S = tensors["input_ids"]
    with torch.inference_mode():
        logits_S1V = network(
            tokens_1S=tokens_1S,
            positions_3S=tensors["positions"],
            cu_seqlens=torch.tensor([0, tokens_1S.shape[1]], dtype=torch.int32, device=tokens_1S.device),
            pixels_PC=tensors["pixel_values"],
            grids_I3=tensors["image_grid_thw"],
            vision_index_M=(tokens_1S[0] == network.sizes.image_token_id).nonzero()[:, 0],
        )
    torch.save(logits_S1V.squeeze(1).float().cpu(), out)


def _load(checkpoint: MegatronCheckpoint) -> torch.nn.Module:
    """The whole network in fp32 on one rank, filled by `megatron.core.dist_checkpointing`."""
    from megatron.core import dist_checkpointing

    from megatron_medx.models.megatron_config import decoder_config
    from megatron_medx.models.qwen3_vl import Qwen3VLModel
    from megatron_medx.models.specs import layer_specs
    from megatron_medx.parallel.groups import solo_groups, start_alone

    # The plain layers, also where Transformer Engine is: this is a comparison in fp32, not a matter of speed.
    config, groups = decoder_config(checkpoint.model), start_alone()
    network = Qwen3VLModel(checkpoint.model, config, layer_specs(checkpoint.model, False), groups, solo_groups()).eval()
    state = dist_checkpointing.load({"model": network.sharded_state_dict()}, str(checkpoint.folder))
    network.load_state_dict(state["model"])
    return network.to(torch.cuda.current_device())


if __name__ == "__main__":
    main(*sys.argv[1:])
