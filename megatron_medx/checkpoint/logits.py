"""Run weights in the stock `transformers` model, on one fixed input with text and an image.

The only module of the package's conversion that builds a model; `verify.py` uses it for small ones. transformers is
imported when it is needed, because plain conversion does without it.
"""

import torch

from megatron_medx.checkpoint.convert import Weights, read_hf_group
from megatron_medx.checkpoint.hf_config import config_json
from megatron_medx.checkpoint.hf_directory import HfDirectory
from megatron_medx.checkpoint.rules import Binding
from megatron_medx.config.model import ModelConfig

_NUM_TEXT_TOKENS = 8
_GRID_BLOCKS = (2, 3)
"""Height and width of the image in merged tokens: not square, so that a swap of the two shows."""


@torch.inference_mode()
def logits_of(weights: Weights, bound: tuple[Binding, ...]) -> torch.Tensor:
    """Logits [tokens, vocabulary], fp32, of opened weights on the fixed input."""
    model = _stock_model(weights, bound)
    return model(**fixed_input(weights.model)).logits[0]


def _stock_model(weights: Weights, bound: tuple[Binding, ...]):
    """The transformers model: a directory through its own loader, a checkpoint through its tensors."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if isinstance(weights, HfDirectory):
        return transformers.AutoModelForImageTextToText.from_pretrained(weights.folder, dtype=torch.float32).eval()
    state = {
        key: tensor.float()
        for one in bound
        for key, tensor in zip(one.hf_keys, read_hf_group(weights, one), strict=True)
    }
    config = transformers.Qwen3VLConfig(**config_json(weights.model, torch.float32, {}))
    return transformers.Qwen3VLForConditionalGeneration.from_pretrained(None, config=config, state_dict=state).eval()


def fixed_input(model: ModelConfig) -> dict[str, torch.Tensor]:
    """Text, one image, text: the arguments of the stock model's forward.

    Returns:
        input_ids, attention_mask, mm_token_type_ids: [1, S] int64; pixel_values: [P, C] fp32 standard normal;
        image_grid_thw: [1, 3] int64, in patches.
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
    grid = torch.tensor([[1, height * model.vision.merge_size, width * model.vision.merge_size]])
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == model.image_token_id).long(),
        "pixel_values": torch.randn(int(grid.prod()), model.vision.patch_dim, generator=generator),
        "image_grid_thw": grid,
    }
