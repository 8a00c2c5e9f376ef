"""Run weights on one fixed input with text and an image, each in the network that is theirs.

A Hugging Face directory runs in stock `transformers`, a Megatron checkpoint in our Megatron network. transformers is
imported when it is needed, because plain conversion does without it.
"""

import torch

from megatron_medx.checkpoint.megatron_directory import MegatronCheckpoint
from megatron_medx.checkpoint.megatron_logits import megatron_logits
from megatron_medx.checkpoint.weights import Weights
from megatron_medx.config.model import ModelConfig

_NUM_TEXT_TOKENS = 8
_GRID_BLOCKS = (2, 3)
"""Height and width of the image in merged tokens: not square, so that a swap of the two shows."""


def logits_of(weights: Weights) -> torch.Tensor:
    """Logits (S, V), fp32, of opened weights on the fixed input."""
    inputs = fixed_input(weights.model)
    if isinstance(weights, MegatronCheckpoint):
        return megatron_logits(weights, inputs)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    stock = transformers.AutoModelForImageTextToText.from_pretrained(weights.folder, dtype=torch.float32).eval()
    del inputs["positions"]  # transformers derives its own
    with torch.inference_mode():
        return stock(**inputs).logits[0]


def fixed_input(model: ModelConfig) -> dict[str, torch.Tensor]:
    """Text, one image, text: the arguments of the stock model's forward.

    Returns:
        input_ids, attention_mask, mm_token_type_ids: [1, S] int64; pixel_values: [P, C] fp32 standard normal;
        image_grid_thw: [1, 3] int64, in patches; positions: [3, S] int64, M-RoPE (time, height, width).
    """
    generator = torch.Generator().manual_seed(0)
    special = {
        model.image_token_id,
        model.video_token_id,
        model.vision_start_token_id,
        model.vision_end_token_id,
    }
    ordinary = torch.tensor([index for index in range(model.vocab_size) if index not in special])
    text = ordinary[torch.randint(len(ordinary), (2, _NUM_TEXT_TOKENS), generator=generator)].tolist()
    height, width = _GRID_BLOCKS
    image = [model.vision_start_token_id, *[model.image_token_id] * (height * width), model.vision_end_token_id]
    input_ids = torch.tensor([text[0] + image + text[1]])
    before = len(text[0]) + 1  # text and <|vision_start|> count on; the image starts at `before` on all three axes
    block = torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width)).T
    after = torch.arange(1 + len(text[1])) + max(height, width)
    positions = torch.cat([torch.arange(before).expand(3, -1), before + block, before + after.expand(3, -1)], dim=1)
    grid = torch.tensor([[1, height * model.vision.merge_size, width * model.vision.merge_size]])
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == model.image_token_id).long(),
        "pixel_values": torch.randn(int(grid.prod()), model.vision.patch_dim, generator=generator),
        "image_grid_thw": grid,
        "positions": positions,
    }
