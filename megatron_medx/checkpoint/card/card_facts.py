"""What is known of where weights come from: run, step, what it saw, data, stages before.

Everything is read from files that a run or a conversion left; nothing is guessed. A fact that is not there stays None,
and what could not be read goes to a list of notes, for the card to say so: an export does not fail because a log did.

    checkpoint root   run.yaml, plan.json, the checkpoint's own arguments
    run folder        metrics.jsonl, validation.jsonl: only where the root is still RUN/checkpoints
    data folders      manifest.json, report.json: only where they still lie as the run found them
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from megatron_medx.checkpoint.card.card_stages import (
    Base,
    launched_in,
    one_line,
    place_name,
    read_base,
    read_run_file,
    trace_start,
    without_folders,
)
from megatron_medx.checkpoint.megatron_files.run_state import run_state
from megatron_medx.config.checkpoint_folders import CHECKPOINTS, RUN_FILE, is_hf_directory, step_of
from megatron_medx.config.run import RunConfig
from megatron_medx.config.validation import MAIN_SET, VALIDATION_FILE, ranking_set
from megatron_medx.errors import CheckpointError
from megatron_medx.run_folder.names import METRICS_FILE

PLAN_FILE = "plan.json"
MANIFEST_FILE, REPORT_FILE = "manifest.json", "report.json"
"""Names that `training` and `data` give their files; a test holds them together, since those are not imported here."""


@dataclass(frozen=True, slots=True)
class Data:
    """One data folder of a run, as planned at launch."""

    name: str
    num_samples: int
    num_tokens: int
    """Of one pass."""
    share: str
    """Of the run's tokens: `70.0%`, or `30.0% at 0, 10.0% at 50,000,000,000 tokens`."""
    max_epochs: float | None
    index_sha256: str
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """`license`, `language`, `modality` -> what samples state -> samples; none where the folder is not there."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Sums over the steps up to the checkpoint, from metrics.jsonl."""

    tokens: int
    images: int
    skipped: int
    """Steps whose update was left out."""
    loss: float | None
    """Of the last of these steps, nats a token."""


@dataclass(slots=True, kw_only=True)
class Source:
    """Weights that a directory was written from."""

    name: str
    """`pretrain_8b, step 1,200`, or the name of a folder."""
    factor: float = 1.0
    """What they were multiplied with."""
    step: int | None = None
    run_name: str = ""
    """Name of the run folder."""
    run: RunConfig | None = None
    provenance: dict = field(default_factory=dict)
    """Command, date, commit and versions of the newest launch of the run, or of the conversion."""
    grid: dict[str, int | None] | None = None
    """Of the launch that saved this step."""
    rows: int | None = None
    seen: Seen | None = None
    validation: dict | None = None
    """Newest line of validation.jsonl up to the step, of the set that exports are ranked by."""
    data: tuple[Data, ...] = ()
    stages: tuple[str, ...] = ()
    """What the run started from, the nearest first."""
    bases: tuple[Base, ...] = ()


def read_source(folder: Path, factor: float, notes: list[str]) -> Source:
    """What is known of one set of weights.

    Args:
        folder: Hugging Face directory, or folder of a checkpoint with tensors.
        factor: what they are multiplied with.
        notes: gets a sentence for each thing that could not be read.
    """
    if is_hf_directory(folder):
        base = read_base(folder, notes)
        return Source(name=base.name, factor=factor, bases=(base,))
    root, step = folder.absolute().parent, step_of(folder)
    run_folder = root.parent if root.name == CHECKPOINTS else root
    run, provenance = read_run_file(root / RUN_FILE, notes)
    source = Source(name=place_name(folder), factor=factor, step=step, run_name=run_folder.name)
    source.run, source.provenance = run, provenance
    stages, source.bases = trace_start(run, provenance, notes, (folder.absolute(),))
    source.stages = tuple(stages)
    if run is None or step is None:
        return source
    source.name = f"{run.run.recipe or source.run_name}, step {step:,}"
    source.grid, source.rows = _state(folder, notes)
    source.seen = _seen(run_folder / METRICS_FILE, step, notes)
    told = [line for line in _lines(run_folder / VALIDATION_FILE, (), notes) if line["step"] <= step]
    evaluated = [line for line in told if line.get("set", MAIN_SET) == ranking_set(run)]
    source.validation = max(reversed(evaluated), key=lambda line: line["step"], default=None)
    source.data = _data(root / PLAN_FILE, launched_in(run, root), notes)
    return source


def _state(folder: Path, notes: list[str]) -> tuple[dict | None, int | None]:
    try:
        state = run_state(folder)
    except CheckpointError as error:
        notes.append(f"grid and rows: {without_folders(error.found)}")
        return None, None
    return state["grid"], state["consumed_rows"]


def _seen(path: Path, step: int, notes: list[str]) -> Seen | None:
    """Sums over the steps up to `step`; None where there is no line of any of them."""
    if not path.is_file():
        notes.append(f"no {METRICS_FILE} beside the checkpoints: tokens and images seen are not known")
        return None
    lines = {line["step"]: line for line in _lines(path, ("tokens", "images"), notes) if 1 <= line["step"] <= step}
    if len(lines) < step:
        notes.append(f"{METRICS_FILE} has {len(lines):,} of {step:,} steps: its sums are of these alone")
    if not lines:
        return None
    loss = lines.get(step, {}).get("loss")
    return Seen(
        tokens=sum(line["tokens"] for line in lines.values()),
        images=sum(line["images"] for line in lines.values()),
        skipped=sum(bool(line.get("skipped")) for line in lines.values()),
        loss=loss if type(loss) in (int, float) else None,
    )


def _lines(path: Path, needed: tuple[str, ...], notes: list[str]) -> list[dict]:
    """The lines of a JSON Lines file that have a step and numbers under the needed keys; the others are noted."""
    if not path.is_file():
        return []
    lines, num_bad = [], 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and all(type(line.get(key)) in (int, float) for key in ("step", *needed)):
            lines.append(line)
        else:
            num_bad += 1
    if num_bad:
        notes.append(f"{num_bad:,} of {num_bad + len(lines):,} lines of {path.name} are not readable")
    return lines


def _data(path: Path, start: Path, notes: list[str]) -> tuple[Data, ...]:
    """The data folders of a run, from its plan and, where they lie below `start`, from what they say themselves."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        pieces, counts = plan["pieces"], plan["counts"]
        num_tokens = sum(summary["num_tokens"] for summary in counts.values())
        return tuple(
            Data(
                name=Path(place).absolute().name,
                num_samples=int(summary["num_samples"]),
                num_tokens=int(summary["num_tokens"]),
                share=_share(pieces[f"source {number}: weight"], summary["num_tokens"] / max(1, num_tokens)),
                max_epochs=pieces[f"source {number}: max_epochs"],
                index_sha256=pieces[f"source {number}: index SHA-256"],
                counts=_stated_counts(start / place, pieces[f"source {number}: index SHA-256"], notes),
            )
            for number, (place, summary) in enumerate(counts.items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        notes.append(f"which data were used: {PLAN_FILE} beside the checkpoints is not readable ({one_line(error)})")
        return ()


def _share(knots: list | None, of_tokens: float) -> str:
    if knots is None:
        return f"{of_tokens:.1%}, in proportion to its tokens"
    if len(knots) == 1:
        return f"{knots[0][1]:.1%}"
    return ", ".join(f"{weight:.1%} at {tokens:,}" for tokens, weight in knots) + " tokens"


def _stated_counts(folder: Path, index_sha256: str, notes: list[str]) -> dict[str, dict[str, int]]:
    """Samples by license, language and modality, if the folder is still the one that was trained on."""
    try:
        manifest, report = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in (MANIFEST_FILE, REPORT_FILE)
        )
        if manifest["index_sha256"] != index_sha256:
            notes.append(f"licenses and languages of {folder.name}: the folder was built anew since")
            return {}
        return {
            name: {stated: int(count) for stated, count in report[name].items()}
            for name in ("license", "language", "modality")
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        notes.append(f"licenses and languages of {folder.name}: its report is not readable ({one_line(error)})")
        return {}
