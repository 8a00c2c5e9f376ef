"""Transformer Engine's layers against our plain torch ones: logits, loss and gradients of one network on one row.

    python -m benchmarks.gpu.specs OUT_JSON

Three networks with the same weights compute the same packed row: plain layers in fp32, plain layers in bf16,
Transformer Engine's in bf16. What bf16 itself costs is the distance of the second from the first; the third may be
FACTOR times as far from the first, plus STEP. The row has samples of uneven lengths, with none to three images of
different shapes; the network has DeepStack levels, interleaved M-RoPE, grouped queries and tied embeddings. Without a
GPU the third is made of plain layers as well: then only this program is tried.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from megatron_medx.config.model import ModelConfig
from megatron_medx.data.chat import EncodedSample
from megatron_medx.data.collate import collate
from megatron_medx.data.microbatch import Microbatch
from megatron_medx.recipes.demo import demo_model

FACTOR = 2.0
"""Times that Transformer Engine's distance from fp32 may be that of plain bf16 layers. Expected, not measured."""

STEP = 2.0**-8
"""Half the gap between neighboring bf16 numbers, relative: what a single rounding may add."""

SAMPLES = (
    (37, ()),
    (150, ((1, 8, 12),)),
    (3, ()),
    (260, ((1, 4, 4), (1, 16, 10), (1, 2, 6))),
    (91, ((1, 6, 6), (1, 12, 4))),
)
"""Text tokens of each sample, and the grids (frames, height, width) of its images in patches."""

ALIGN_TOKENS = 128
"""The row is padded to a multiple, as FP8 rows are: its tail is a segment that weighs nothing."""


def small_model() -> ModelConfig:
    """4 decoder and 4 tower layers; heads of 64, which every attention kernel knows."""
    model = demo_model()
    vision = dataclasses.replace(
        model.vision, hidden_size=256, num_layers=4, num_heads=4, ffn_hidden_size=512, deepstack_layers=(0, 2)
    )
    sizes = {"hidden_size": 512, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64, "ffn_hidden_size": 1024}
    return dataclasses.replace(model, **sizes, mrope_section=(12, 10, 10), vision=vision)


def make_row(model: ModelConfig, seed: int = 7) -> Microbatch:
    """The packed row of SAMPLES with random text and random patches; half of the text is learned."""
    draw, encoded, patches = torch.Generator().manual_seed(seed), [], []
    for number, (num_text, grids) in enumerate(SAMPLES):
        pieces = []
        for grid in grids:
            area = grid[0] * grid[1] * grid[2]
            place = torch.full((area // model.vision.merge_size**2,), model.image_token_id)
            start, end = (torch.tensor([i]) for i in (model.vision_start_token_id, model.vision_end_token_id))
            pieces += [start, place, end]
            patches.append(torch.randn(area, model.vision.patch_dim, generator=draw))
        tokens = torch.cat([*pieces, torch.randint(0, 4000, (num_text,), generator=draw)])
        learned = torch.zeros(len(tokens))
        learned[-(num_text // 2) :] = 1.0
        grids_I3 = torch.tensor(grids, dtype=torch.int64).reshape(-1, 3)
        encoded.append(EncodedSample(f"sample-{number}", tokens, learned, grids_I3))
    pixels = torch.cat(patches)
    sizes = {"image_token_id": model.image_token_id, "merge_size": model.vision.merge_size}
    return collate(encoded, pixels, align_tokens=ALIGN_TOKENS, **sizes)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a network makes of the row, in fp32 on its device."""

    logits_S1V: Tensor
    losses_1S: Tensor
    gradients: dict[str, Tensor]
    """By the tensor's name in a checkpoint, which all kinds of layers share."""


def compute(groups: object, dtype: torch.dtype, use_transformer_engine: bool, seed: int = 7) -> Outcome:
    """Forward and backward of the seeded network.

    Args:
        groups: Megatron's process groups of this process alone.
        dtype: of weights and activations.
        use_transformer_engine: which layers it is built of.
        seed: of weights and row.
    """
    from megatron_medx.models.initial_weights import set_initial_weights
    from megatron_medx.models.megatron_config import decoder_config
    from megatron_medx.models.qwen3_vl import Qwen3VLModel
    from megatron_medx.models.specs import layer_specs
    from megatron_medx.parallel.groups import solo_groups
    from megatron_medx.training.step import to_device

    model = small_model()
    config = decoder_config(model, bf16=dtype == torch.bfloat16, params_dtype=dtype)
    network = Qwen3VLModel(model, config, layer_specs(model, use_transformer_engine), groups, solo_groups())
    set_initial_weights(network, seed)
    network = network.to(torch.cuda.current_device())
    row = to_device(make_row(model, seed))
    inputs = row.tokens_1S, row.positions_3S, row.cu_seqlens, row.pixels_PC, row.grids_I3, row.vision_index_M
    with torch.no_grad():
        logits_S1V = network(*inputs).float()
    losses_1S = network(*inputs, row.labels_1S)
    (losses_1S * row.loss_weights_1S).sum().div(row.loss_weights_1S.sum()).backward()
    return Outcome(logits_S1V, losses_1S.detach() * row.loss_weights_1S, _gradients(network))


def _gradients(network: torch.nn.Module) -> dict[str, Tensor]:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
    from megatron.core.dist_checkpointing.utils import nested_values

    trained = {id(parameter): parameter for parameter in network.parameters()}
    kinds = ShardedTensor, ShardedTensorFactory
    entries = [entry for entry in nested_values(network.sharded_state_dict()) if isinstance(entry, kinds)]
    found = {entry.key: trained[id(entry.data)].grad.float() for entry in entries if id(entry.data) in trained}
    assert len(found) == len(trained), f"{len(trained)} parameters, {len(found)} of them in the checkpoint"
    return found


GROUPS = {
    "embedding": "embedding.",
    "tower": "vision.",
    "merger": "merger.final.",
    "DeepStack mergers": "merger.deepstack.",
    "decoder": "decoder.",
}
"""Group of gradients -> beginning of their names in a checkpoint; the output layer's weight is the embedding's."""


def distances(found: Outcome, reference: Outcome) -> dict[str, float]:
    """Relative distance ‖found - reference‖ / ‖reference‖ of logits, token losses and each of GROUPS."""
    quantities = {"logits": (found.logits_S1V, reference.logits_S1V), "losses": (found.losses_1S, reference.losses_1S)}
    for group, prefix in GROUPS.items():
        names = sorted(name for name in reference.gradients if name.startswith(prefix))
        assert names, f"no gradient named {prefix}*"
        quantities[group] = tuple(torch.cat([of.gradients[n].flatten() for n in names]) for of in (found, reference))
    return {name: float((ours - theirs).norm() / theirs.norm()) for name, (ours, theirs) in quantities.items()}


def compare(groups: object, use_transformer_engine: bool, seed: int = 7) -> dict[str, dict[str, float | bool]]:
    """Of each quantity the distance of plain bf16 and of the other bf16 layers from fp32, the limit, and `within`."""
    exact = compute(groups, torch.float32, False, seed)
    plain = distances(compute(groups, torch.bfloat16, False, seed), exact)
    fused = distances(compute(groups, torch.bfloat16, use_transformer_engine, seed), exact)
    limits = {name: FACTOR * distance + STEP for name, distance in plain.items()}
    return {
        name: {"torch": plain[name], "te": fused[name], "limit": limits[name], "within": fused[name] <= limits[name]}
        for name in plain
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and write the distances."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.specs", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args(arguments)
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend(announce=lambda line: None)
    from megatron_medx.models.specs import transformer_engine_usable
    from megatron_medx.parallel.groups import start_alone

    used = transformer_engine_usable()
    found = compare(start_alone(), used)
    chosen.out.write_text(json.dumps({"transformer_engine": used, "quantities": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
