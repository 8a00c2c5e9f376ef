"""Agentic reinforcement learning in TRL: GRPO in which the model calls a tool that answers with an image.

    python examples/sft_tool_calls_trl.py runs/demo/hf --out runs/demo/trl_tool_calls     # it must know what a call is
    python examples/grpo_zoom_tool.py runs/demo/trl_tool_calls --out runs/demo/trl_zoom

TRL reads calls only if the chat template is, to the byte, one that it knows: an export carries Qwen3-VL's own.
`log_completions` stays off: with images from tools TRL 1.16 cannot write them.
"""

import argparse
import os

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # environments are experimental there; we know

from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer
from viewer import SHORT_RUN, Viewer, few_words, right_side, task


def main(words: list[str] | None = None) -> GRPOTrainer:
    """Train and save; returns the trainer, whose state holds the log."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", nargs="?", default="runs/demo/trl_tool_calls", help="directory to start from")
    parser.add_argument("--out", default="runs/demo/trl_zoom", help="directory to save in")
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args(words)

    trainer = GRPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(args.export),
        processing_class=AutoProcessor.from_pretrained(args.export),
        reward_funcs=[right_side, few_words],
        environment_factory=Viewer,
        train_dataset=Dataset.from_list(task(16)),
        args=GRPOConfig(
            output_dir=args.out,
            max_steps=args.steps,
            per_device_train_batch_size=8,
            num_generations=8,
            max_completion_length=192,  # of all turns together, the tool's and its image tokens included
            max_tool_calling_iterations=1,
            learning_rate=1e-4,
            **SHORT_RUN,
        ),
    )
    trainer.train()
    trainer.save_model(args.out)
    return trainer


if __name__ == "__main__":
    main()
