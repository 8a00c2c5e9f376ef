"""An export in TRL: it takes supervised steps and GRPO steps, and calls a tool that answers with an image.

Nothing is stubbed: generation, tool, images, loss and gradients are TRL's. A network with random weights never writes a
call, so it is first taught the form, by supervised steps on transcripts (examples/sft_tool_calls_trl.py).
"""

import math
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file
from trl.chat_template_utils import add_response_schema, parse_response, qwen3_vl_chat_template, supports_tool_calling
from trl_runs import COLD_START, Trained, train, zoomed

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning"),  # TRL's own use of transformers
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
]

CALL = '<tool_call>\n{"name": "zoom", "arguments": {"side": "left"}}\n</tool_call><|im_end|>'
PARTS = {
    "tower": "model.visual.blocks.",
    "merger": "model.visual.merger.",
    "deepstack": "model.visual.deepstack_merger_list.",
    "decoder": "model.language_model.layers.",
}
"""What has to change in training: the beginning of its keys."""


def check_training(run: Trained, num_steps: int) -> None:
    """Steps had losses and gradients, and every part of the network moved."""
    assert len(run.steps) == num_steps
    for step in run.steps:
        assert math.isfinite(float(step["loss"]))
        assert math.isfinite(float(step["grad_norm"]))
    assert any(float(step["grad_norm"]) > 0 for step in run.steps)  # a group of equal rewards has none
    before, after = (load_file(folder / "model.safetensors") for folder in (run.start, run.saved))
    for part, beginning in PARTS.items():
        keys = [key for key in before if key.startswith(beginning) and ".experts." not in key]  # saved transposed
        assert any((before[key] != after[key]).any() for key in keys), part


def num_image_tokens(run: Trained, token_ids: torch.Tensor) -> int:
    return int((token_ids == transformers.AutoConfig.from_pretrained(run.start).image_token_id).sum())


def merged_tokens(grids_I3: torch.Tensor) -> int:
    return int(grids_I3.prod(dim=1).sum()) // 4


def test_trl_knows_the_tool_format_by_the_template(export_dir):
    processor = transformers.AutoProcessor.from_pretrained(export_dir)
    assert processor.chat_template == qwen3_vl_chat_template
    assert supports_tool_calling(processor)
    assert getattr(processor.tokenizer, "response_template", None) is None
    tokenizer = add_response_schema(processor).tokenizer
    assert tokenizer.response_template is not None
    turn, prompt = (tokenizer(text)["input_ids"] for text in (CALL, "<|im_start|>assistant\n"))
    (call,) = parse_response(tokenizer, turn, prefix=prompt)["tool_calls"]
    assert call["function"] == {"name": "zoom", "arguments": {"side": "left"}}


def test_a_template_with_one_other_byte_is_not_known(export_dir, tmp_path):
    shutil.copytree(export_dir, tmp_path / "changed")
    template = tmp_path / "changed" / "chat_template.jinja"
    text = template.read_bytes()
    assert text.count(b"# Tools") == 1
    template.write_bytes(text.replace(b"# Tools", b"# tools"))
    with pytest.raises(ValueError, match="Unrecognized chat template"):
        add_response_schema(transformers.AutoProcessor.from_pretrained(tmp_path / "changed"))


def test_supervised_steps_on_images_and_text(tied_export_dir):
    run = train("sft_trl", tied_export_dir, "--steps", "2")
    check_training(run, 2)
    for batch in run.batches:
        assert len(batch["image_grid_thw"]) == 4
        assert num_image_tokens(run, batch["input_ids"]) == merged_tokens(batch["image_grid_thw"]) > 0
        assert 0 < (batch["labels"] != -100).sum() < (batch["labels"] == -100).sum()  # the answer alone is learned


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_grpo_steps_with_an_image_column_and_rewards_of_our_own(kind, export_dir, moe_export_dir):
    run = train("grpo_trl", {"dense": export_dir, "moe": moe_export_dir}[kind], "--steps", "2")
    check_training(run, 2)
    for step, batch in zip(run.steps, run.batches, strict=True):
        assert float(step["reward_std"]) > 0
        assert num_image_tokens(run, batch["prompt_ids"]) == merged_tokens(batch["image_grid_thw"]) > 0


def test_the_form_of_a_tool_call_is_learned(export_dir):
    run = train("sft_tool_calls_trl", export_dir, *COLD_START)
    check_training(run, 75)
    assert float(run.steps[0]["loss"]) > 4
    assert float(run.steps[-1]["loss"]) < 0.1  # 0.04 was seen


def test_grpo_steps_with_a_tool_that_returns_an_image(export_dir):
    run = zoomed(export_dir)
    check_training(run, 2)
    for step, batch in zip(run.steps, run.batches, strict=True):
        num_episodes = len(batch["completion_ids"])
        assert num_episodes == 8
        num_calls = round(float(step["tools/call_frequency"]) * num_episodes)
        num_crops = round((1 - float(step["tools/failure_frequency"])) * num_calls)  # a sampled call may be malformed
        assert num_crops > 0
        assert len(batch["image_grid_thw"]) == num_episodes + num_crops
        in_prompts = num_image_tokens(run, batch["prompt_ids"])
        in_completions = num_image_tokens(run, batch["completion_ids"])
        assert in_prompts + in_completions == merged_tokens(batch["image_grid_thw"])
        assert in_completions > 0
        assert num_image_tokens(run, batch["completion_ids"][batch["tool_mask"] == 1]) == 0  # never learned
