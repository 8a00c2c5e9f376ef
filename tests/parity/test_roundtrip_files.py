"""Stock transformers models through files: saved, converted, exported, loaded again, and run.

The networks come from transformers itself, with every parameter perturbed; `AutoModelForImageTextToText` reads the
export without remote code. Checkpoints that Megatron wrote on several ranks: tests/unit/checkpoint, tests/distributed.
"""

import pytest
import torch
import transformers
from conversion_proof import SHAPES, prove_conversion, stock_logits, stock_model

from megatron_medx.checkpoint.convert import to_hf, to_megatron
from megatron_medx.checkpoint.hugging_face.hf_config import read_config
from megatron_medx.checkpoint.hugging_face.hf_directory import HfDirectory
from megatron_medx.checkpoint.layout.rules import bindings, hf_shapes


@pytest.fixture(params=list(SHAPES.values()), ids=list(SHAPES))
def stock(request, tmp_path):
    """A stock model and the directory that transformers saved it to."""
    model = stock_model(request.param)
    model.save_pretrained(tmp_path / "hf")
    return model, tmp_path / "hf"


def test_the_rules_name_what_transformers_saves(stock):
    _, folder = stock
    stored = HfDirectory(folder)
    assert hf_shapes(bindings(stored.model)) == {key: spec.shape for key, spec in stored.specs.items()}


def test_conversion_keeps_every_bit_and_megatron_computes_the_same(stock, tmp_path, one_rank):
    assert prove_conversion(*stock, tmp_path, one_rank) > 0, "two networks, not one and the same"


def test_the_export_loads_in_stock_transformers_with_equal_logits(stock, tmp_path):
    model, folder = stock
    to_megatron(folder, tmp_path / "root")
    to_hf(tmp_path / "root", tmp_path / "back")
    again = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "back", experts_implementation="eager"
    ).eval()
    assert type(again) is type(model)
    state = model.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in again.state_dict().items())
    sizes = read_config(tmp_path / "back" / "config.json")
    assert torch.equal(stock_logits(model, sizes), stock_logits(again, sizes))


def test_transformers_reads_the_config_as_it_was(stock, tmp_path):
    model, folder = stock
    to_megatron(folder, tmp_path / "root")
    to_hf(tmp_path / "root", tmp_path / "back")
    again = transformers.AutoConfig.from_pretrained(tmp_path / "back")
    for section in ("text_config", "vision_config"):
        ours, theirs = getattr(again, section).to_dict(), getattr(model.config, section).to_dict()
        ignored = {"_name_or_path", "dtype", "tie_word_embeddings", "norm_topk_prob"}  # the last is for servers
        assert {k: v for k, v in ours.items() if k not in ignored} == {
            k: v for k, v in theirs.items() if k not in ignored
        }
    assert again.tie_word_embeddings == model.config.tie_word_embeddings
