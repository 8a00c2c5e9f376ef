"""Wrong rules of conversion, each applied as a mistake would be: the proof of test_roundtrip_files.py catches all.

Most are wrong in both directions, so every tensor comes back as it was, and only Megatron's network tells. The least
difference of logits that one of them caused was 0.20 (2026-11-23), the largest of the right rules is 3.3e-6.
"""

import pytest
import torch
from conversion_proof import DENSE, EXPERTS, prove_conversion, stock_model

from megatron_medx.checkpoint.layout import rules
from megatron_medx.checkpoint.layout.transformations import (
    ExpertTranspose,
    GateUp,
    PatchEmbed,
    QkvInterleave,
    VisionQkv,
)
from megatron_medx.errors import CheckpointError

BITS, LOGITS, SHAPES = (AssertionError, "bits differ"), (AssertionError, "logits differ"), (CheckpointError, "shape")


def both_ways(transformation, there, back):
    """A layout that is wrong in both directions alike: it survives a round trip."""

    def mutate(monkeypatch):
        monkeypatch.setattr(transformation, "to_megatron", lambda self, parts, model: there(parts, model))
        monkeypatch.setattr(transformation, "to_hf", lambda self, whole, shapes, model: back(whole, shapes, model))

    return mutate


def one_way(transformation, back):
    """A layout that is wrong on the way to Hugging Face alone."""

    def mutate(monkeypatch):
        monkeypatch.setattr(transformation, "to_hf", lambda self, whole, shapes, model: back(whole, shapes, model))

    return mutate


def after(transformation, there, back):
    """The right layout, and then a change of the Megatron tensor, which `back` undoes."""
    right = transformation()
    right_there, right_back = right.to_megatron, right.to_hf
    return both_ways(
        transformation,
        lambda parts, model: there(right_there(parts, model), model).contiguous(),
        lambda whole, shapes, model: right_back(back(whole, model), shapes, model),
    )


def renamed(change):
    """A table in which `change` was made to the Hugging Face names, before their numbers are compared with shapes."""

    def mutate(monkeypatch):
        right = rules.Binding
        monkeypatch.setattr(rules, "Binding", lambda keys, *rest: right(tuple(map(change, keys)), *rest))

    return mutate


def swapped(one, other):
    """Two names taken for one another."""
    return renamed(lambda key: key.replace(one, "\0").replace(other, one).replace("\0", other))


def next_number(before, count):
    """The number behind a prefix, one too high (and the last one 0)."""

    def change(key):
        head, prefix, tail = key.partition(before)
        number, dot, rest = tail.partition(".")
        return f"{head}{prefix}{(int(number) + 1) % count}{dot}{rest}" if prefix else key

    return renamed(change)


def as_halves(whole):
    """The second half of the rows before the first."""
    return torch.cat([whole[whole.shape[0] // 2 :], whole[: whole.shape[0] // 2]])


def groups_of(rows, model):
    """Decoder projections by group: [groups, heads of a group + 2, head size, hidden]."""
    return rows.reshape(model.num_kv_heads, -1, model.head_dim, *rows.shape[1:])


def keys_and_values_swapped(rows, model):
    """Each group's value head before its key head."""
    grouped = groups_of(rows, model)
    return torch.cat([grouped[:, :-2], grouped[:, -1:], grouped[:, -2:-1]], dim=1).reshape(rows.shape)


def query_heads_reversed(rows, model):
    """The heads of each group in reverse."""
    grouped = groups_of(rows, model)
    return torch.cat([grouped[:, :-2].flip(1), grouped[:, -2:]], dim=1).reshape(rows.shape)


def of_next_group(rows, model):
    """Every group's rows one group on."""
    return groups_of(rows, model).roll(1, 0).reshape(rows.shape)


def of_previous_group(rows, model):
    """Undoes `of_next_group`."""
    return groups_of(rows, model).roll(-1, 0).reshape(rows.shape)


def split_rows(whole, shapes, _):
    """Rows one after another, as they lie."""
    return tuple(part.contiguous() for part in whole.split([shape[0] for shape in shapes]))


def fused_halves_swapped(whole, _):
    """Of the experts' fused projection [experts, 2 x inner, hidden] up before gate; nothing for the other one."""
    return whole.roll(whole.shape[1] // 2, 1) if whole.shape[1] == 24 else whole


MUTATIONS = {
    "gate and up swapped": (
        DENSE,
        LOGITS,
        after(GateUp, lambda rows, _: as_halves(rows), lambda rows, _: as_halves(rows)),
    ),
    "gate and up row by row": (
        DENSE,
        LOGITS,
        both_ways(
            GateUp,
            lambda parts, _: torch.stack(parts, dim=1).flatten(0, 1),
            lambda whole, shapes, _: (whole[::2].contiguous(), whole[1::2].contiguous()),
        ),
    ),
    "gate and up swapped on export": (DENSE, BITS, one_way(GateUp, lambda *a: split_rows(*a)[::-1])),
    "q, k, v one after another": (
        DENSE,
        LOGITS,
        both_ways(QkvInterleave, lambda parts, _: torch.cat(parts), split_rows),
    ),
    "q, k, v one after another on export": (DENSE, BITS, one_way(QkvInterleave, split_rows)),
    "key and value heads swapped": (DENSE, LOGITS, after(QkvInterleave, *[keys_and_values_swapped] * 2)),
    "query heads of a group reversed": (DENSE, LOGITS, after(QkvInterleave, *[query_heads_reversed] * 2)),
    "groups one on": (DENSE, LOGITS, after(QkvInterleave, of_next_group, of_previous_group)),
    "vision q, k, v as they are": (
        DENSE,
        LOGITS,
        both_ways(VisionQkv, lambda parts, _: parts[0], lambda whole, *_: (whole,)),
    ),
    "vision q, k, v by the other axis": (
        DENSE,
        LOGITS,
        both_ways(
            VisionQkv,
            lambda parts, model: VisionQkv._swap(parts[0], model.vision.num_heads, 3),
            lambda whole, _, model: (VisionQkv._swap(whole, 3, model.vision.num_heads),),
        ),
    ),
    "vision q, k, v as they are on export": (DENSE, BITS, one_way(VisionQkv, lambda whole, *_: (whole,))),
    "experts reshaped, not transposed": (
        EXPERTS,
        LOGITS,
        both_ways(
            ExpertTranspose,
            lambda parts, _: parts[0].reshape(len(parts[0]), parts[0].shape[2], parts[0].shape[1]),
            lambda whole, shapes, _: (whole.reshape(shapes[0]),),
        ),
    ),
    "experts reshaped on export": (
        EXPERTS,
        BITS,
        one_way(ExpertTranspose, lambda whole, shapes, _: (whole.reshape(shapes[0]),)),
    ),
    "experts in reverse": (EXPERTS, LOGITS, after(ExpertTranspose, *[lambda whole, _: whole.flip(0)] * 2)),
    "gate and up of experts swapped": (EXPERTS, LOGITS, after(ExpertTranspose, *[fused_halves_swapped] * 2)),
    "colors and frames of a patch swapped": (
        DENSE,
        LOGITS,
        both_ways(
            PatchEmbed,
            lambda parts, _: parts[0].transpose(1, 2).flatten(1),
            lambda whole, s, _: (whole.reshape(s[0][0], s[0][2], s[0][1], *s[0][3:]).transpose(1, 2).contiguous(),),
        ),
    ),
    "rows and columns of a patch swapped": (
        DENSE,
        LOGITS,
        both_ways(
            PatchEmbed,
            lambda parts, _: parts[0].transpose(3, 4).flatten(1),
            lambda whole, shapes, _: (whole.reshape(shapes[0]).transpose(3, 4).contiguous(),),
        ),
    ),
    "DeepStack one too high": (DENSE, LOGITS, next_number("deepstack_merger_list.", 2)),
    "decoder layers one too high": (DENSE, LOGITS, next_number("language_model.layers.", 3)),
    "tower layers one too high": (EXPERTS, LOGITS, next_number("visual.blocks.", 3)),
    "weight and bias of the last merger's norm": (
        DENSE,
        LOGITS,
        swapped("visual.merger.norm.weight", "visual.merger.norm.bias"),
    ),
    "norms of the DeepStack mergers": (
        DENSE,
        LOGITS,
        swapped("deepstack_merger_list.0.norm", "deepstack_merger_list.1.norm"),
    ),
    "norms of the last and a DeepStack merger": (
        DENSE,
        SHAPES,
        swapped("visual.merger.norm", "visual.deepstack_merger_list.0.norm"),
    ),
    "fc1 and fc2 of mergers": (DENSE, SHAPES, swapped("linear_fc1", "linear_fc2")),
    "biases of the first tower norm and the second": (DENSE, LOGITS, swapped("norm1.bias", "norm2.bias")),
    "decoder norms before attention and MLP": (
        DENSE,
        LOGITS,
        swapped("input_layernorm", "post_attention_layernorm"),
    ),
    "the same with experts": (EXPERTS, LOGITS, swapped("input_layernorm", "post_attention_layernorm")),
    "norms of queries and keys": (DENSE, LOGITS, swapped("q_norm", "k_norm")),
    "input and output embeddings": (
        DENSE,
        LOGITS,
        swapped("lm_head.weight", "model.language_model.embed_tokens.weight"),
    ),
}
"""Mistake -> (network, what it raises, how it is made)."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Stock networks and where transformers saved them, by whether they have experts."""
    networks = {}
    for shape in (DENSE, EXPERTS):
        folder = tmp_path_factory.mktemp("saved")
        networks["experts" in shape] = stock_model(shape), folder
        networks["experts" in shape][0].save_pretrained(folder)
    return networks


@pytest.mark.parametrize("shape", [DENSE, EXPERTS], ids=["dense", "experts"])
def test_the_rules_as_they_are_pass(shape, saved, tmp_path, one_rank):
    prove_conversion(*saved["experts" in shape], tmp_path, one_rank)


@pytest.mark.parametrize(("shape", "caught", "mutate"), MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_wrong_rule_is_caught(shape, caught, mutate, saved, tmp_path, one_rank, monkeypatch):
    mutate(monkeypatch)
    error, words = caught
    with pytest.raises(error, match=words):
        prove_conversion(*saved["experts" in shape], tmp_path, one_rank)
