"""Each layout change against a construction that goes row by row, and back."""

import pytest
import torch

from megatron_medx.checkpoint.layout.rules import RULES, bindings
from megatron_medx.checkpoint.layout.transformations import (
    Copy,
    ExpertTranspose,
    GateUp,
    PatchEmbed,
    QkvInterleave,
    VisionQkv,
)


def brute_force(transformation, parts, model):
    """The Megatron tensor, one row at a time, from the definition of its order."""
    if isinstance(transformation, QkvInterleave):
        (q, k, v), size = parts, model.head_dim
        rows, heads_per_group = [], model.num_heads // model.num_kv_heads
        for group in range(model.num_kv_heads):
            for head in range(group * heads_per_group, (group + 1) * heads_per_group):
                rows += [q[head * size + i] for i in range(size)]
            rows += [k[group * size + i] for i in range(size)]
            rows += [v[group * size + i] for i in range(size)]
        return torch.stack(rows)
    if isinstance(transformation, VisionQkv):
        heads = model.vision.num_heads
        size = parts[0].shape[0] // heads // 3
        return torch.stack(
            [
                parts[0][which * heads * size + head * size + i]
                for head in range(heads)
                for which in range(3)
                for i in range(size)
            ]
        )
    if isinstance(transformation, GateUp):
        gate, up = parts
        return torch.stack([*gate, *up])
    if isinstance(transformation, ExpertTranspose):
        return torch.stack([torch.stack([expert[:, i] for i in range(expert.shape[1])]) for expert in parts[0]])
    if isinstance(transformation, PatchEmbed):
        return torch.stack([torch.tensor(row.flatten().tolist()) for row in parts[0]])
    assert isinstance(transformation, Copy)
    return parts[0]


def random_parts(binding, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in binding.hf_shapes)


def test_every_group_equals_the_row_by_row_construction_and_comes_back(model):
    for binding in bindings(model):
        parts = random_parts(binding)
        whole = binding.transformation.to_megatron(parts, model)
        assert tuple(whole.shape) == binding.megatron_shape, binding.megatron_key
        assert torch.equal(whole, brute_force(binding.transformation, parts, model)), binding.megatron_key
        back = binding.transformation.to_hf(whole, binding.hf_shapes, model)
        for key, part, again in zip(binding.hf_keys, parts, back, strict=True):
            assert torch.equal(part, again) and again.is_contiguous(), key


def test_all_six_layout_changes_are_used():
    used = {type(rule.transformation) for rule in RULES}
    assert used == {Copy, ExpertTranspose, GateUp, PatchEmbed, QkvInterleave, VisionQkv}


class SwappedGateUp(GateUp):
    """Wrong: up before gate. Its own round trip is exact."""

    def to_megatron(self, parts, model):
        return torch.cat(parts[::-1])

    def to_hf(self, whole, hf_shapes, model):
        return super().to_hf(whole, hf_shapes, model)[::-1]


class ConcatenatedQkv(QkvInterleave):
    """Wrong: q, k, v one after the other. Its own round trip is exact."""

    def to_megatron(self, parts, model):
        return torch.cat(parts)

    def to_hf(self, whole, hf_shapes, model):
        return whole.split([shape[0] for shape in hf_shapes])


class UntouchedVisionQkv(Copy):
    """Wrong: Hugging Face's order kept. Its own round trip is exact."""


@pytest.mark.parametrize(
    ("wrong", "right"),
    [(SwappedGateUp(), GateUp()), (ConcatenatedQkv(), QkvInterleave()), (UntouchedVisionQkv(), VisionQkv())],
)
def test_a_wrong_rule_is_caught_although_it_round_trips(one_model, wrong, right):
    binding = next(one for one in bindings(one_model) if type(one.transformation) is type(right))
    parts = random_parts(binding)
    whole = wrong.to_megatron(parts, one_model)
    back = wrong.to_hf(whole, binding.hf_shapes, one_model)
    assert all(torch.equal(part, again) for part, again in zip(parts, back, strict=True))
    assert not torch.equal(whole, brute_force(right, parts, one_model))


def test_the_worked_examples_of_the_docstrings(one_model):
    one_model.num_heads, one_model.num_kv_heads, one_model.head_dim = 4, 2, 1
    letters = [torch.tensor([[ord(letter)] for letter in text]) for text in ("abcd", "ef", "gh")]
    joined = QkvInterleave().to_megatron(tuple(letters), one_model)
    assert "".join(chr(row) for row in joined.flatten()) == "abegcdfh"
    one_model.vision.num_heads = 2
    rows = torch.tensor([0, 1, 10, 11, 20, 21])  # q0 q1 k0 k1 v0 v1
    assert VisionQkv().to_megatron((rows,), one_model).tolist() == [0, 10, 20, 1, 11, 21]
