"""The tables name exactly the tensors of a network, and every departure stops."""

import dataclasses

import pytest
import torch

from megatron_medx.checkpoint.layout.rules import bindings, check_total, hf_shapes, megatron_shapes
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.errors import CheckpointError


def specs_of(shapes):
    return {key: TensorSpec(shape, torch.float32) for key, shape in shapes.items()}


def test_every_key_appears_once_on_each_side(model):
    bound = bindings(model)
    hf_keys = [key for one in bound for key in one.hf_keys]
    assert len(hf_keys) == len(set(hf_keys)) == len(hf_shapes(bound))
    assert len(bound) == len(megatron_shapes(bound))
    assert not any("*" in key for key in [*hf_keys, *megatron_shapes(bound)])


def test_tied_networks_have_no_output_layer(one_model):
    untied = bindings(one_model)
    tied = bindings(dataclasses.replace(one_model, tie_embeddings=True))
    assert set(hf_shapes(untied)) - set(hf_shapes(tied)) == {"lm_head.weight"}
    assert set(megatron_shapes(untied)) - set(megatron_shapes(tied)) == {"output_layer.weight"}


def test_total_passes_when_all_is_there(model):
    shapes = hf_shapes(bindings(model))
    check_total(shapes, specs_of(shapes), "somewhere")


def test_missing_extra_and_misshapen_tensors_are_all_named(one_model):
    shapes = hf_shapes(bindings(one_model))
    found = specs_of(shapes)
    del found["model.language_model.norm.weight"]
    found["model.stranger.weight"] = TensorSpec((1,), torch.float32)
    found["model.visual.pos_embed.weight"] = TensorSpec((16, 17), torch.float32)
    with pytest.raises(CheckpointError) as caught:
        check_total(shapes, found, "/some/hf")
    assert "1 tensors missing: model.language_model.norm.weight" in caught.value.found
    assert "1 tensors not known: model.stranger.weight" in caught.value.found
    assert "model.visual.pos_embed.weight [16, 17] instead of [16, 16]" in caught.value.found
    assert "/some/hf" in caught.value.found


def test_a_tied_untied_contradiction_says_so(one_model):
    shapes = hf_shapes(bindings(dataclasses.replace(one_model, tie_embeddings=True)))
    with pytest.raises(CheckpointError, match="check tie_word_embeddings"):
        check_total(shapes, specs_of({**shapes, "lm_head.weight": (96, 40)}), "somewhere")


def test_stacked_layers_have_advice_of_their_own(one_model):
    shapes = megatron_shapes(bindings(one_model))
    stacked = specs_of({"decoder.layers.self_attention.linear_qkv.weight": (2, 64, 40)})
    with pytest.raises(CheckpointError, match="hetereogenous_dist_checkpoint"):
        check_total(shapes, stacked, "somewhere")


def test_long_lists_are_cut_and_counted(one_model):
    shapes = hf_shapes(bindings(one_model))
    with pytest.raises(CheckpointError, match=f"and {len(shapes) - 8} more"):
        check_total(shapes, {}, "somewhere")
