"""Teach the form of a tool call by supervised fine-tuning in TRL: the cold start of reinforcement learning with tools.

    python examples/sft_tool_calls_trl.py runs/demo/hf --out runs/demo/trl_tool_calls

A model that never calls a tool is never rewarded for it. Two rows a picture: one ends in the call, one, which already
shows what the tool returned, in the answer. The prompts are rendered here, by the export's own chat template, because
TRL hands no tools to the template when it fine-tunes on images.
"""

import argparse

from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer
from viewer import QUESTION, SHORT_RUN, SIDES, Viewer, task


def main(words: list[str] | None = None) -> SFTTrainer:
    """Train and save; returns the trainer, whose state holds the log."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", nargs="?", default="runs/demo/hf", help="Hugging Face directory to start from")
    parser.add_argument("--out", default="runs/demo/trl_tool_calls", help="directory to save in")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args(words)

    processor = AutoProcessor.from_pretrained(args.export)
    trainer = SFTTrainer(
        model=AutoModelForImageTextToText.from_pretrained(args.export),
        processing_class=processor,
        train_dataset=Dataset.from_list(transcripts(processor, 64)),
        args=SFTConfig(
            output_dir=args.out,
            max_steps=args.steps,
            per_device_train_batch_size=4,
            learning_rate=args.learning_rate,
            lr_scheduler_type="constant",
            max_length=None,  # a row that is cut would lose image tokens
            **SHORT_RUN,
        ),
    )
    trainer.train()
    trainer.save_model(args.out)
    return trainer


def transcripts(processor, num_pictures: int) -> list[dict]:
    """Rows of `prompt` and `completion` (rendered text) and `images`; the two halves are zoomed into in turn."""
    rows, viewer = [], Viewer()
    for number, row in enumerate(task(num_pictures)):
        side = SIDES[number % 2]
        viewer.reset(row["image"], row["side"])
        crop = viewer.zoom(side)
        call = {"type": "function", "function": {"name": "zoom", "arguments": {"side": side}}}
        turns = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]},
            {"role": "assistant", "content": [], "tool_calls": [call]},
            {"role": "tool", "name": "zoom", "content": crop},
            {"role": "assistant", "content": [{"type": "text", "text": row["side"]}]},
        ]
        pictures = [row["image"], crop[0]["image"]]
        for end in (1, 3):  # the turns that are learned
            prompt = _render(processor, turns[:end], add_generation_prompt=True)
            completion = _render(processor, turns[: end + 1]).removeprefix(prompt).removesuffix("\n")
            rows.append({"prompt": prompt, "completion": completion, "images": pictures[: 1 + end // 2]})
    return rows


def _render(processor, turns: list[dict], **options) -> str:
    return processor.apply_chat_template(turns, tools=[Viewer().zoom], tokenize=False, **options)


if __name__ == "__main__":
    main()
