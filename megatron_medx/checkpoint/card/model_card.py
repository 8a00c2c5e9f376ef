"""README.md of an exported directory: the front matter that the hub reads, and where the weights come from.

The facts are those of `card_facts.py`, the text is `model_card.md.jinja`. Nothing is invented: a field without a fact
is left out, the license is that of the run or of the base model or `unknown`, and what could not be read is listed.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

from megatron_medx.checkpoint.card.card_facts import Source, read_source
from megatron_medx.checkpoint.card.card_stages import CARD_FILE, without_folders
from megatron_medx.checkpoint.hugging_face.hf_config import family_of
from megatron_medx.checkpoint.layout.parts import stored_part
from megatron_medx.config.checkpoint_folders import CONFIG_FILE
from megatron_medx.config.files import collect_provenance
from megatron_medx.config.model import ModelConfig
from megatron_medx.config.parameters import part_counts

logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")

UNKNOWN_LICENSE = {"license": "unknown"}
"""The hub's word where none is stated."""

_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")
"""ISO 639, as the hub lists languages; samples may state a language in other words."""


def write_model_card(
    folder: Path, model: ModelConfig, sources: Sequence[Path], factors: Sequence[float] | None = None
) -> None:
    """Write README.md into a Hugging Face directory that has its config.json.

    Args:
        folder: the directory under construction.
        model: sizes of the whole network.
        sources: what it was written from: folders with a checkpoint's tensors, or Hugging Face directories.
        factors: what each was multiplied with in a mean; None for one source, written as it is.
    """
    read, notes = _read(sources, factors or [1.0])
    for note in notes:
        logger.warning("model card: %s", note)
    part = stored_part(folder)
    data = ModelCardData(
        **_license(read),
        base_model=_base_models(read),
        language=_languages(read),
        library_name="transformers",
        pipeline_tag=None if part else "image-text-to-text",
        tags=["megatron-medx", "mixture-of-experts"] if model.is_moe else ["megatron-medx"],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        part=part,
        title=_title(read),
        architecture=family_of(model).architecture,
        dtype=json.loads((folder / CONFIG_FILE).read_text())["dtype"],
        model=model,
        parameters=part_counts(model),
        sources=read,
        run=_shared_run(read),
        license_source=_license_source(read),
        export=collect_provenance([]),
        notes=notes,
        configuration=_configuration,
        shortened=without_folders,
    )
    card.save(folder / CARD_FILE)


def _read(sources: Sequence[Path], factors: Sequence[float]) -> tuple[list[Source], list[str]]:
    """What is known of each source, and what is not; of several, a note names the one it is about."""
    read: list[Source] = []
    notes: dict[str, None] = {}  # in order, each once
    for path, factor in zip(sources, factors, strict=True):
        own: list[str] = []
        read.append(read_source(path, factor, own))
        notes |= dict.fromkeys(own if len(sources) == 1 else (f"{read[-1].name}: {note}" for note in own))
    return read, list(notes)


def _title(sources: list[Source]) -> str:
    names = [source.name for source in sources]
    return names[0] if len(names) == 1 else f"Mean of {len(names)} checkpoints: {names[0]} to {names[-1]}"


def _shared_run(sources: list[Source]) -> Source | None:
    """The source whose run the card describes: the newest step, where all are of one run."""
    of_runs = [source for source in sources if source.run is not None and source.step is not None]
    if len(of_runs) < len(sources) or len({(one.run_name, one.provenance.get("date")) for one in of_runs}) > 1:
        return None
    return max(of_runs, key=lambda source: source.step)


def _bases(sources: list[Source]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(base.name for source in sources for base in source.bases))


def _license(sources: list[Source]) -> dict[str, str]:
    """What the runs name; else the license fields of the base models where all state the same; else `unknown`."""
    if named := _named_license(sources):
        return {"license": named}
    stated = [base.license for source in sources for base in source.bases]
    is_whole = all(source.bases for source in sources)
    return (
        stated[0]
        if is_whole and stated[0].get("license") and all(one == stated[0] for one in stated)
        else UNKNOWN_LICENSE
    )


def _named_license(sources: list[Source]) -> str:
    """`run.license`, where the runs of all sources name the same one."""
    named = {source.run.run.license if source.run else "" for source in sources}
    return named.pop() if len(named) == 1 else ""


def _license_source(sources: list[Source]) -> tuple[str, ...]:
    """What states the license of the front matter."""
    if _named_license(sources):
        return ("run.license",)
    return _bases(sources) if _license(sources) != UNKNOWN_LICENSE else ()


def _base_models(sources: list[Source]) -> list[str] | None:
    return list(dict.fromkeys(name for one in sources for base in one.bases for name in base.base_models)) or None


def _languages(sources: list[Source]) -> list[str] | None:
    stated = {language for one in sources for data in one.data for language in data.counts.get("language", {})}
    return sorted(language for language in stated if _LANGUAGE_CODE.fullmatch(language)) or None


def _configuration(source: Source) -> str:
    """The run's configuration as run.yaml has it, with absolute paths cut down to names."""
    plain = json.loads(json.dumps(asdict(source.run), default=str))  # tuples become lists
    return yaml.safe_dump(without_folders(plain), sort_keys=False, allow_unicode=True, width=120).rstrip()
