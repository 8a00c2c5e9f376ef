"""Run a checkpoint in the Megatron network, as a process of its own: loaded by Megatron's own loader, one rank.

    python -m megatron_medx.checkpoint.running.megatron_logits CKPT SAMPLES.pt FOLDER

A process of its own, because the CPU backend changes torch for a whole process and Megatron's groups are global.
"""

import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from megatron_medx.checkpoint.megatron_files.megatron_directory import MegatronCheckpoint


def write_megatron_logits(checkpoint: MegatronCheckpoint, samples: Sequence, folder: Path) -> None:
    """Write the logits (S, V), fp32, of each sample into `folder` as 0.pt, 1.pt, ...

    Args:
        checkpoint: opened weights.
        samples: `logits.Sample`s.
        folder: that exists.

    Raises:
        RuntimeError: the network could not be run; its output is in the message.
    """
    with tempfile.TemporaryDirectory(prefix="medx-") as scratch:
        inputs = Path(scratch) / "samples.pt"
        torch.save([dataclasses.asdict(sample) for sample in samples], inputs)
        words = [sys.executable, "-m", __name__, str(checkpoint.folder), str(inputs), str(folder)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the Megatron network of {checkpoint.folder} did not run:\n{done.stderr[-4000:]}")


def main(checkpoint: str, inputs: str, folder: str) -> None:
    """Load, run, write the logits."""
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()
    from megatron_medx.parallel.groups import start_alone

    network = load_network(MegatronCheckpoint(Path(checkpoint)), start_alone())
    for number, sample in enumerate(torch.load(inputs)):
        torch.save(network_logits(network, sample).cpu(), Path(folder) / f"{number}.pt")


def network_logits(network: torch.nn.Module, sample: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Logits (S, V), fp32, of one sample that fills a row alone; `sample` has the fields of `logits.Sample`."""
    on_device = {name: value.to(torch.cuda.current_device()) for name, value in sample.items()}
    tokens_1S = on_device["tokens_1S"]
    with torch.inference_mode():
        logits_S1V = network(
            tokens_1S=tokens_1S,
            positions_3S=on_device["positions_3S"],
            cu_seqlens=torch.tensor([0, tokens_1S.shape[1]], dtype=torch.int32, device=tokens_1S.device),
            pixels_PC=on_device["pixels_PC"],
            grids_I3=on_device["grids_I3"],
            vision_index_M=(tokens_1S[0] == network.sizes.image_token_id).nonzero()[:, 0],
        )
    return logits_S1V.squeeze(1).float()


def load_network(checkpoint: MegatronCheckpoint, groups: object) -> torch.nn.Module:
    """The whole network in fp32, filled by `megatron.core.dist_checkpointing`.

    Args:
        checkpoint: opened weights.
        groups: Megatron's process groups of a single rank.
    """
    from megatron.core import dist_checkpointing

    from megatron_medx.models.megatron_config import decoder_config
    from megatron_medx.models.qwen3_vl import Qwen3VLModel
    from megatron_medx.models.specs import layer_specs
    from megatron_medx.parallel.groups import solo_groups

    # The plain layers, also where Transformer Engine is: this is a comparison in fp32, not a matter of speed.
    config = decoder_config(checkpoint.model)
    network = Qwen3VLModel(checkpoint.model, config, layer_specs(checkpoint.model, False), groups, solo_groups()).eval()
    state = dist_checkpointing.load({"model": network.sharded_state_dict()}, str(checkpoint.folder))
    network.load_state_dict(state["model"])
    return network.to(torch.cuda.current_device())


if __name__ == "__main__":
    main(*sys.argv[1:])
