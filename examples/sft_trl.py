"""Supervised fine-tuning of an export in TRL: images, conversations, a few steps.

    python examples/sft_trl.py runs/demo/hf --out runs/demo/trl_sft

What it saves goes back to Megatron with `medx convert to-megatron`.
"""

import argparse

from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer
from viewer import SHORT_RUN, task


def main(words: list[str] | None = None) -> SFTTrainer:
    """Train and save; returns the trainer, whose state holds the log."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", nargs="?", default="runs/demo/hf", help="Hugging Face directory to start from")
    parser.add_argument("--out", default="runs/demo/trl_sft", help="directory to save in")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args(words)

    rows = [
        {"image": row["image"], "prompt": row["prompt"], "completion": [{"role": "assistant", "content": row["side"]}]}
        for row in task(64)
    ]
    trainer = SFTTrainer(
        model=AutoModelForImageTextToText.from_pretrained(args.export),
        processing_class=AutoProcessor.from_pretrained(args.export),
        train_dataset=Dataset.from_list(rows),
        args=SFTConfig(
            output_dir=args.out,
            max_steps=args.steps,
            per_device_train_batch_size=4,
            learning_rate=1e-4,
            max_length=None,  # a row that is cut would lose image tokens
            **SHORT_RUN,
        ),
    )
    trainer.train()
    trainer.save_model(args.out)  # weights, config, tokenizer, template, processor
    return trainer


if __name__ == "__main__":
    main()
