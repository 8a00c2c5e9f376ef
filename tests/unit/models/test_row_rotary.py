"""Rotation of whole rows: by hand, beside Megatron's own for packed rows, and that Megatron's layers call it."""

import inspect

import pytest
import torch
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.transformer import attention

from megatron_medx.models.rotary import mrope_angles
from megatron_medx.models.row_rotary import cosines_and_sines, rotate_row, use_row_rotary


def test_halves_of_a_head_turn_against_each_other():
    angles = torch.tensor([torch.pi / 2, torch.pi, torch.pi / 2, torch.pi]).view(1, 1, 1, 4)
    turned = rotate_row(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), cosines_and_sines(angles, torch.float32))
    assert turned.flatten().tolist() == pytest.approx([-3.0, -2.0, 1.0, -4.0], abs=1e-6)


class OneRank:
    """Of a context-parallel group, what Megatron asks for."""

    def size(self):
        return 1

    def rank(self):
        return 0


def test_it_is_bit_equal_to_megatrons_rotation_segment_by_segment():
    torch.manual_seed(0)
    borders = torch.tensor([0, 3, 10, 11], dtype=torch.int32)
    positions_3S = torch.cat([torch.arange(int(length)).expand(3, -1) for length in borders.diff()], dim=1)
    angles = mrope_angles(positions_3S * torch.tensor([[1], [2], [3]]), 16, 5e6, (4, 2, 2))
    t_LND = torch.randn(11, 3, 16)
    theirs = rope_utils._apply_rotary_pos_emb_thd(t_LND, borders, angles, cp_group=OneRank())
    assert torch.equal(rotate_row(t_LND, cosines_and_sines(angles, torch.float32)), theirs)


def test_megatrons_layers_call_it():
    """The name in the module of attention, for queries and for keys of a row that is packed."""
    use_row_rotary()
    assert attention.apply_rotary_pos_emb is rotate_row
    lines = [line.strip() for line in inspect.getsource(attention.Attention.forward).splitlines()]
    calls = [line for line in lines if "= apply_rotary_pos_emb(" in line and not line.startswith("#")]
    assert calls == ["query = apply_rotary_pos_emb(", "key = apply_rotary_pos_emb("]


def test_layers_keep_one_copy_between_them():
    turns = cosines_and_sines(torch.rand(5, 1, 1, 8), torch.float32)
    kept = []
    t_LND = torch.randn(5, 2, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
        rotate_row(rotate_row(t_LND, turns), turns)
    assert {saved.untyped_storage().data_ptr() for saved in kept} == {turns.untyped_storage().data_ptr()}
