"""M-RoPE positions against transformers' own."""

import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLModel

from megatron_medx.data.positions import mrope_positions
from megatron_medx.errors import DataError

IMAGE = 9
TEXT = 1


def tokens(*runs):
    """Runs of text lengths and grids -> (tokens_S, grids_I3)."""
    ids, grids = [], []
    for run in runs:
        if isinstance(run, int):
            ids += [TEXT] * run
        else:
            ids += [IMAGE] * (run[0] * run[1] * run[2] // 4)
            grids.append(run)
    return torch.tensor(ids), torch.tensor(grids, dtype=torch.int64).reshape(-1, 3)


@pytest.fixture(scope="module")
def stock():
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8,
            "intermediate_size": 8, "vocab_size": 16, "pad_token_id": 0}  # fmt: skip
    vision = {"hidden_size": 8, "depth": 1, "num_heads": 1, "intermediate_size": 8, "out_hidden_size": 8}
    config = Qwen3VLConfig(text_config=text, vision_config=vision | {"deepstack_visual_indexes": []})
    config.image_token_id = IMAGE
    return Qwen3VLModel(config)


@pytest.mark.parametrize(
    "runs",
    [
        (5,),
        (3, (1, 4, 6), 4),
        ((1, 2, 2), 1),
        (2, (1, 10, 4)),
        (1, (1, 4, 4), 2, (1, 2, 16), 1, (1, 14, 6), 3),
        ((1, 6, 8),),
        (1, (1, 4, 4), 1, (1, 4, 4), 1),
    ],
    ids=str,
)
def test_equal_to_transformers(stock, runs):
    tokens_S, grids_I3 = tokens(*runs)
    kinds = (tokens_S == IMAGE).int()[None]
    theirs, _ = stock.get_rope_index(tokens_S[None], mm_token_type_ids=kinds, image_grid_thw=grids_I3)
    assert torch.equal(mrope_positions(tokens_S, grids_I3, IMAGE, 2), theirs[:, 0])


def test_worked_example_of_the_docstring():
    tokens_S, grids_I3 = tokens(2, (1, 4, 6), 2)
    assert mrope_positions(tokens_S, grids_I3, IMAGE, 2).tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


def test_images_that_touch_are_told_apart():
    tokens_S, grids_I3 = tokens((1, 2, 4), (1, 4, 2))
    assert mrope_positions(tokens_S, grids_I3, IMAGE, 2).tolist() == [[0, 0, 2, 2], [0, 0, 2, 3], [0, 1, 2, 2]]


def test_counts_that_do_not_fit_are_refused():
    tokens_S, grids_I3 = tokens(2, (1, 4, 6), 2)
    with pytest.raises(DataError, match="5 placeholder tokens in a row for image 0"):
        mrope_positions(torch.cat([tokens_S[:3], tokens_S[4:]]), grids_I3, IMAGE, 2)
    with pytest.raises(DataError, match="0 placeholder tokens in a row for image 1"):
        mrope_positions(tokens_S, grids_I3.repeat(2, 1), IMAGE, 2)
    with pytest.raises(DataError, match="6 placeholder tokens behind the last image"):
        mrope_positions(tokens_S, grids_I3[:0], IMAGE, 2)
