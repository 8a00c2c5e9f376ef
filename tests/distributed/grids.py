"""Grids in a short notation, and the small networks that are trained on them.

`tp2 pp2 vpp2 cp2 dp2 ep2` names the size of each axis; what is missing is 1. `first1` and `last1` are layers of the
first and the last stage. `full` and `selective` recompute activations. Ranks: tp x pp x cp x dp.
"""

import math
import re

FIELDS = {
    "tp": "tensor",
    "pp": "pipeline",
    "vpp": "virtual_pipeline",
    "cp": "context",
    "ep": "expert",
    "first": "first_stage_layers",
    "last": "last_stage_layers",
}
"""Letters of the notation -> field of the section `parallel`; dp is what the ranks leave."""

ONE = "dp1"
"""The grid of one process, which all others are compared with."""

SMALL = (
    "data.seq_len_tokens=256", "data.sample_align_tokens=8", "data.min_pixels=4096", "data.max_pixels=150000",
    "model.hidden_size=72", "model.num_layers=4", "model.num_heads=12", "model.num_kv_heads=4", "model.head_dim=16",
    "model.mrope_section=4,2,2", "model.ffn_hidden_size=120", "model.tie_embeddings=true",
    "model.vision.hidden_size=36", "model.vision.num_heads=3", "model.vision.num_layers=3",
    "model.vision.ffn_hidden_size=60", "optimizer.lr=2e-3", "optimizer.min_lr=2e-4", "optimizer.warmup_tokens=2048",
    "training.global_batch_rows=4", "training.steps=5", "precision.dtype=fp32", "checkpoint.every_steps=100",
)  # fmt: skip
"""What makes recipe `demo` as small as Qwen3-VL gets, with widths and heads that few numbers divide.

Four rows of 256 tokens a step, two steps of warm-up. Tensor parallelism up to 4 (3 query heads a rank), context
parallelism up to 4.
"""

EXPERTS = (
    "model.num_experts=8", "model.experts_per_token=2", "model.expert_ffn_hidden_size=40",
    "model.router_aux_loss_coef=0.01", "model.tie_embeddings=false",
)  # fmt: skip
"""What makes it a mixture of experts."""

PACKED = ("data.packing=true", "run.seed=42", "model.vision.deepstack_layers=1")
UNPACKED = ("data.packing=false", "run.seed=24", "model.vision.deepstack_layers=0,2")
"""The seeds whose five steps have all that test_grids.py::test_the_rows_are_awkward asks for.

DeepStack's layers must be on the first stage: with two, four stages of four layers would be refused.
"""

SAVE_AT_3 = ("checkpoint.every_steps=3",)

ONE_STEP = ("training.steps=1", "optimizer.warmup_tokens=0")

SCENARIOS = {
    "dense": (*PACKED, *SAVE_AT_3),
    "experts": (*PACKED, *EXPERTS, *SAVE_AT_3),
    "experts per sample": (*PACKED, *EXPERTS, "training.loss_average=sample"),
    "dense unpacked": UNPACKED,
    "experts unpacked": (*UNPACKED, *EXPERTS),
    "ten steps": (*UNPACKED, "training.steps=10", "checkpoint.every_steps=5", "log.tensorboard=true"),
    "own rates": (
        *PACKED, "model.tie_embeddings=false", "optimizer.vision_lr=1e-30", "optimizer.merger_lr=5e-4",
    ),
    "merger alone": (*PACKED, "training.freeze=vision,language", "optimizer.lr=2e-2", "model.tie_embeddings=false"),
    "merger alone, experts": (*PACKED, *EXPERTS, "training.freeze=vision,language", *ONE_STEP),
}  # fmt: skip
"""Name -> overrides after SMALL of a run that tests share."""

COLD = ("ten steps",)
"""Scenarios of which tests ask what a person sees, so they are started as a person's."""

RECOMPUTE = {
    "full": ("training.recompute=full", "training.recompute_vision=full"),
    "selective": ("training.recompute=selective", "training.recompute_vision=selective"),
}


def sizes(grid: str) -> dict[str, int]:
    """`tp2 dp3 full` as {"tp": 2, "dp": 3}."""
    return {letters: int(size) for letters, size in re.findall(r"\b([a-z]+)(\d+)\b", grid)}


def num_ranks(grid: str) -> int:
    """Processes of a grid: experts and virtual stages take none of their own."""
    return math.prod(size for letters, size in sizes(grid).items() if letters in ("tp", "pp", "cp", "dp"))


def words(grid: str) -> list[str]:
    """The grid as words of `medx train`. Every axis is named: a resumed run has those of the grid before."""
    given = sizes(grid)
    unknown = given.keys() - FIELDS.keys() - {"dp"}
    assert not unknown, f"{grid}: {unknown}"
    defaults = {"first": "none", "last": "none"}
    fields = [f"parallel.{field}={given.get(letters, defaults.get(letters, 1))}" for letters, field in FIELDS.items()]
    switches = [word for name in grid.split() if not name[-1].isdigit() for word in RECOMPUTE[name]]
    return [*fields, *switches, "--nproc", str(num_ranks(grid))]
