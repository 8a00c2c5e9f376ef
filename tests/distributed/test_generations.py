"""Sample generations: every grid says what one process and `transformers` say, and training is what it is without.

A small network learns a few answers by heart on one process. Every grid goes on from its last checkpoint with no step
left to train, so that all are asked with the same weights. Between the two highest logits of a token `transformers`
found 0.012 and more on a network of this size after 40 steps (2026-11-23).
"""

import json

import pytest
import small_data
import torch
from agreement import weights
from grids import EXPERTS, ONE, PACKED, SCENARIOS, SMALL

from megatron_medx.generate import Assistant

STEPS = 40

ANSWERED = {
    "wide": ("What is shown?", "A fracture of the left femur, not displaced.", ("wide",)),
    "tall": ("What is shown?", "No acute abnormality.", ("tall",)),
    "two": ("What is shown?", "Two images, noise and a square.", ("odd", "square")),
    "text": ("What is J18?", "Pneumonia, of an organism that is not named in the text.", ()),
    "short": ("Is it?", "Yes.", ()),
}
"""Sample -> question, answer, images."""

ROOM = 8
"""Tokens of an answer: some answers are shorter and end, others are cut off."""

LEARNING = (
    *SMALL, f"training.steps={STEPS}", f"checkpoint.every_steps={STEPS}", f"checkpoint.export_every_steps={STEPS}",
    "optimizer.lr=5e-3",
)  # fmt: skip

NETWORKS = {"dense": PACKED, "experts": (*PACKED, *EXPERTS)}

GRIDS = (
    ("dense", "tp2"),
    ("dense", "cp2"),
    ("dense", "pp2"),
    ("dense", "pp2 vpp2"),
    ("dense", "dp2"),
    ("experts", "dp2 ep2"),
)

WITHOUT = (("dense", ONE), ("dense", "pp2 vpp2"), ("experts", "dp2 ep2"))
"""Scenario and grid of runs that are compared with those of test_grids.py, which answer nothing."""


def build(data, folder, records):
    """A data folder of these records with the small data folder's images and tokenizer."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in ("images", "processor"):
        (source / name).symlink_to(data / "source" / name)
    return small_data.build(source, folder, records)


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory):
    """What is learned, and a validation set of the same conversations and as many documents as fill its rows."""
    folder = tmp_path_factory.mktemp("asked")
    answered = [small_data.conversation(name, *of_sample) for name, of_sample in ANSWERED.items()]
    told = [
        {"id": f"told-{number}", "content": [{"type": "text", "text": "The heart is of normal size. " * (20 + number)}]}
        for number in range(8)
    ]
    return build(data, folder / "learned", answered), build(data, folder / "asked", answered + told)


def asking(folders, num_questions=5, room=ROOM):
    """Overrides of a run that is asked."""
    return (
        f"data.validation_path={folders[1]}", f"training.validate_every_steps={STEPS}",
        f"training.validate_generations={num_questions}", f"training.validate_generation_tokens={room}",
        "training.validate_at_start=false",
    )  # fmt: skip


def learned(runs, folders, name):
    """The network that has learned the answers, on one process."""
    words = (*LEARNING, *NETWORKS[name], f"data.path={folders[0]}", *asking(folders))
    return runs.once(f"{name} learned", lambda runs: runs.train(f"{name} learned", *words))


def asked_again(runs, folders, name, grid):
    """The same weights on a grid."""

    def flow(runs):
        source = learned(runs, folders, name).result().ok()
        words = (f"data.path={folders[0]}", "checkpoint.export_every_steps=0")
        return runs.resume(source, f"{name} asked on {grid}", *words, grid=grid)

    return runs.once(f"{name} asked on {grid}", flow)


def answering(runs, folders, name, grid):
    """The scenario's run, asked after each of its five steps."""
    words = (*SMALL, *SCENARIOS[name], *asking(folders, 3, 3), "training.validate_every_steps=1")
    title = f"{name} answering on {grid}"
    return runs.once(title, lambda runs: runs.train(title, *words, grid=grid))


@pytest.fixture(scope="module", autouse=True)
def everything(runs, folders):
    """Starts everything of this module."""
    for name in NETWORKS:
        learned(runs, folders, name)
    for name, grid in WITHOUT:
        runs.scenario(name, grid)
        answering(runs, folders, name, grid)
    for name, grid in GRIDS:
        asked_again(runs, folders, name, grid)


def lines(run):
    return [json.loads(line) for line in (run.folder / "generations.jsonl").read_text().splitlines()]


def answers(run):
    """Answer by sample."""
    return {line["sample_id"]: line["answer"] for line in lines(run)}


def test_the_page_of_a_run(runs, folders):
    run = learned(runs, folders, "dense").result().ok()
    assert {(line["step"], line["set"]) for line in lines(run)} == {(STEPS, "validation")}
    assert answers(run).keys() == ANSWERED.keys()
    for line in lines(run):
        question, expected, images = ANSWERED[line["sample_id"]]
        assert line["question"] == " ".join(["[image]"] * len(images) + [question]) and line["expected"] == expected
    assert f"step {STEPS}: {len(ANSWERED)} answers of set validation written to generations.jsonl" in run.said


@pytest.mark.parametrize("name", NETWORKS)
def test_transformers_says_the_same(name, runs, folders):
    run = learned(runs, folders, name).result().ok()
    assistant = Assistant.load(run.folder / "exports" / f"iter_{STEPS:07d}")
    pictures = folders[1] / "source" / "images"
    for sample_id, (question, _, images) in ANSWERED.items():
        said = assistant.ask([pictures / f"{image}.png" for image in images], question, max_new_tokens=ROOM)
        assert answers(run)[sample_id] == said, sample_id
    assert len(set(answers(run).values())) >= 4, "answers to tell apart"


@pytest.mark.parametrize(("name", "grid"), GRIDS)
def test_every_grid_says_the_same(name, grid, runs, folders):
    one = learned(runs, folders, name).result().ok()
    run = asked_again(runs, folders, name, grid).result().ok()
    assert lines(run) == lines(one), "a step that is repeated is told once"
    assert f"{len(ANSWERED)} answers of set validation" in run.said


@pytest.mark.parametrize(("name", "grid"), WITHOUT)
def test_training_is_bit_for_bit_what_it_is_without(name, grid, runs, folders):
    without, run = (run.result().ok() for run in (runs.scenario(name, grid), answering(runs, folders, name, grid)))
    assert [line["step"] for line in lines(run)] == [step for step in range(1, 6) for _ in range(3)]
    for key in ("step", "loss", "grad_norm", "lr", "samples_crc"):
        assert run.column(key) == without.column(key), key
    before, after = weights(without, 5), weights(run, 5)
    assert before and not [key for key in before if not torch.equal(before[key], after[key])]
