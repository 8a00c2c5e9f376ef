"""Which steps of a run are exported as Hugging Face directories, and the rules about the fields that ask for it.

RUN/exports/iter_0001200/   a Hugging Face directory; the name appears when it is whole
RUN/exports/index.json      what was exported, from which step, with which validation loss, and what is still there
RUN/exports/best            a link to the export of the lowest validation loss
"""

from collections.abc import Iterator
from pathlib import Path

from megatron_medx.config.parameters import parameter_counts
from megatron_medx.config.problems import Problem
from megatron_medx.config.run import RunConfig

EXPORTS, INDEX_FILE, BEST = "exports", "index.json", "best"


def is_export_due(config: RunConfig, step: int) -> bool:
    """Whether the checkpoint of a step is exported: after every so many steps, and after the last."""
    every = config.checkpoint.export_every_steps
    return bool(every) and (step % every == 0 or step == config.training.steps)


def exported_step(folder: Path) -> int | None:
    """The step that a folder of exports or checkpoints is named by: 1200 for `iter_0001200`; None for other names."""
    number = folder.name.removeprefix("iter_")
    return int(number) if number.isdecimal() else None


def exports_bytes(config: RunConfig, bytes_per_weight: int) -> int:
    """Size of the exports that lie on the disk at once: those that stay, and one that is being written."""
    due = -(-config.training.steps // config.checkpoint.export_every_steps)
    held = min(due, config.checkpoint.keep_exports + 1) if config.checkpoint.keep_exports else due
    return held * bytes_per_weight * sum(parameter_counts(config.model).values())


def export_problems(config: RunConfig) -> Iterator[Problem]:
    """What is wrong with the fields that ask for exports."""
    checkpoint, validate_every = config.checkpoint, config.training.validate_every_steps
    every = checkpoint.export_every_steps
    if not every:
        if checkpoint.keep_exports:
            yield Problem(
                f"checkpoint.keep_exports {checkpoint.keep_exports}, checkpoint.export_every_steps 0",
                "exports to keep",
                "set checkpoint.export_every_steps, or checkpoint.keep_exports=0",
            )
        return
    yield from _multiple(every, "checkpoint.every_steps", checkpoint.every_steps, "an export is made of a checkpoint")
    if checkpoint.keep_exports and validate_every:
        why = "each export is ranked by the validation loss of its step"
        yield from _multiple(every, "training.validate_every_steps", validate_every, why)


def _multiple(every: int, key: str, of: int, why: str) -> Iterator[Problem]:
    if every % of:
        fits = f"{every // of * of} or {(every // of + 1) * of}" if every > of else f"{of}"
        yield Problem(
            f"checkpoint.export_every_steps {every}, {key} {of}",
            f"a multiple: {why}",
            f"set checkpoint.export_every_steps={fits}, or change {key}",
        )
