"""Reinforcement learning of an export in TRL: GRPO on questions about an image, with rewards of our own.

    python examples/grpo_trl.py runs/demo/hf --out runs/demo/trl_grpo

A reward is a function of the completions; the columns of the data reach it under their names.
"""

import argparse

from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer
from viewer import SHORT_RUN, few_words, right_side, task


def main(words: list[str] | None = None) -> GRPOTrainer:
    """Train and save; returns the trainer, whose state holds the log."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", nargs="?", default="runs/demo/hf", help="Hugging Face directory to start from")
    parser.add_argument("--out", default="runs/demo/trl_grpo", help="directory to save in")
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args(words)

    trainer = GRPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(args.export),
        processing_class=AutoProcessor.from_pretrained(args.export),
        reward_funcs=[right_side, few_words],
        train_dataset=Dataset.from_list(task(16)),
        args=GRPOConfig(
            output_dir=args.out,
            max_steps=args.steps,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=16,
            learning_rate=1e-4,
            **SHORT_RUN,
        ),
    )
    trainer.train()
    trainer.save_model(args.out)  # weights, config, tokenizer, template, processor
    return trainer


if __name__ == "__main__":
    main()
