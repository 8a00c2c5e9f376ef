"""The main job on a laptop: data, training, resuming on another grid, export, and questions to the exported model.

Run it with `make demo`. Each step is a `medx` command that is printed before it runs, so the same can be typed by hand.
Everything lands in runs/demo; summary.json says how it went. A former runs/demo is moved aside, never overwritten.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from megatron_medx.config.overrides import apply_overrides
from megatron_medx.data.demo.build import SOURCE_FOLDER, build_demo
from megatron_medx.data.inspection.preview import draw_preview
from megatron_medx.data.rows import build_row_dataset
from megatron_medx.generate import Assistant
from megatron_medx.recipes import get_recipe
from megatron_medx.terminal import say
from megatron_medx.training.step_lines import read_metrics

RUN = Path("runs/demo")
FIRST_GRID = ["parallel.tensor=2", "parallel.pipeline=1"]
"""Every matrix of the decoder on two ranks, sequence parallelism on."""
SECOND_GRID = ["parallel.tensor=1", "parallel.pipeline=2"]
"""The decoder's layers on two ranks: another grid loads the same checkpoint."""
VALIDATED = [
    "data.validation_path=data/demo/held_out/validation",
    "data.validation_sets.choices=data/demo/held_out/choices",
    "training.validate_every_steps=60",
    "training.validate_generations=3",
    "training.validate_generation_tokens=16",
]
"""Samples that are not trained on, multiple-choice questions about such, and answers; also before the first step."""


def main() -> int:
    """Run the whole path; 0 when every step worked and enough questions were answered."""
    start_s = time.monotonic()
    move_aside(RUN)
    config = apply_overrides(get_recipe("demo"), [f"run.folder={RUN}"])
    say("\n1. Real medical images and texts from pip packages (see ATTRIBUTION.md in the data folder)")
    counts = build_demo(Path(config.data.path))
    say("   " + ", ".join(f"{count} {modality}" for modality, count in counts.items() if "+" not in modality))
    draw_preview(build_row_dataset(config), RUN / "preview.png")
    say(f"   a page of samples as the model sees them: {RUN}/preview.png")

    say("\n2. Train on two ranks; stop half way, go on from the checkpoint on another grid")
    half = config.training.steps // 2
    same = [f"run.folder={RUN}", f"checkpoint.every_steps={half}", *VALIDATED]
    medx("train", "demo", *same, *FIRST_GRID, f"megatron.exit_interval={half}")
    medx("train", "demo", *same, *SECOND_GRID, "--resume")

    say("\n3. Export as an ordinary Hugging Face directory, compare with the Megatron network")
    medx("convert", "to-hf", f"{RUN}/checkpoints", f"{RUN}/hf")
    comparison = json.loads(medx("convert", "verify", f"{RUN}/hf", f"{RUN}/checkpoints").splitlines()[-1])

    say("\n4. Ask the exported model, in plain transformers, what each image is (the model has seen them in training)")
    questions, right = ask_modalities(Path(config.data.path) / SOURCE_FOLDER)

    metrics, validations = (read_metrics(RUN / name) for name in ("metrics.jsonl", "validation.jsonl"))
    last = {line["set"]: line for line in validations}
    summary = {
        "loss_first": metrics[0]["loss"],
        "loss_last": metrics[-1]["loss"],
        "validation_loss_last": last["validation"]["loss"],
        "choices_accuracy_last": last["choices"]["accuracy"],
        "resumed_from_grid": " ".join(FIRST_GRID),
        "resumed_on_grid": " ".join(SECOND_GRID),
        "hf_logits_max_abs_diff": comparison["logits_max_abs_diff"],
        "questions": questions,
        "answered_right": right,
        "wall_minutes": round((time.monotonic() - start_s) / 60, 2),
    }
    (RUN / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    say(f"\n{json.dumps(summary, indent=2)}\n\ncurve: {RUN}/loss.png   model: {RUN}/hf   summary: {RUN}/summary.json")
    say(f"look at the run:   . .venv/bin/activate && medx watch {RUN} --once; medx report {RUN}")
    say(
        "ask it yourself:   . .venv/bin/activate && medx generate runs/demo/hf "
        "--image data/demo/source/images/cr-chest.dcm --question 'Which imaging modality is this?'"
    )
    return 0 if right >= 0.8 * questions else 1


def move_aside(folder: Path) -> None:
    """Rename an earlier run's folder to the first free number, so that nothing is lost."""
    if folder.exists():
        number = 1
        while (former := folder.with_name(f"{folder.name}-before-{number}")).exists():
            number += 1
        folder.rename(former)
        say(f"moved the former {folder} to {former}")


def medx(*words: str) -> str:
    """Run a `medx` command with its output on the screen; returns what it printed.

    Raises:
        SystemExit: the command failed; it has said why.
    """
    say(f"\n   $ medx {' '.join(words)}")
    lines = []
    command = [sys.executable, "-m", "megatron_medx.cli", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            lines.append(line)
            say("   " + line.rstrip())
    if process.returncode != 0:
        raise SystemExit(process.returncode)
    return "".join(lines)


def ask_modalities(data: Path) -> tuple[int, int]:
    """Ask the modality of every image; returns how many were asked and how many answers were right."""
    assistant = Assistant.load(RUN / "hf")
    questions = [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]
    right, lines = 0, []
    for question in questions:
        answer = assistant.ask([data / question["image"]], question["question"], max_new_tokens=16)
        is_right = answer.strip(" .").lower() == question["answer"].strip(" .").lower()
        right += is_right
        lines.append({**question, "said": answer, "right": is_right})
    (RUN / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    say(f"   {right} of {len(questions)} right; all answers: {RUN}/answers.jsonl")
    return len(questions), right


if __name__ == "__main__":
    sys.exit(main())
