"""Runs that go back behind bad steps and leave their rows out: they end like runs that never had these rows.

Two kinds of rows are bad. Images that are divided by an `image_std` of 0 give a loss of NaN; among sentences that a
network has learnt, a line of random letters gives a spike. The seeds put them into the steps that are named here.
"""

import json
import random
import zlib

import pytest
from agreement import LOSS_TOLERANCE, assert_clear_error, assert_same_losses
from grids import ONE, SMALL
from medx_runs import tracker
from small_data import build, build_divided_by_zero, conversation

from megatron_medx.config.files import read_run_yaml
from megatron_medx.data.rows import build_row_dataset
from megatron_medx.run_folder import events
from megatron_medx.run_folder.skipped_rows import SkippedRows, add_skip

UNPACKED = (*SMALL, "data.packing=false", "model.vision.deepstack_layers=0,2")

POISONED = (*UNPACKED, "run.seed=16", "training.steps=5", "training.on_bad_loss=rollback")
"""Four rows a step: images are in steps 3 and 4, rows 8 to 15."""
LEFT_OUT = range(8, 16)

ROLLED_BACK = {ONE: 1, "pp2 dp2": 2, "tp2": 100}
"""Grid -> steps between saves. At 1, step 3 is saved amid the bad ones; at 100 no checkpoint is before them.

The first one saves in the background: the save of step 3 is under way when the run is rolled back.
"""

SPIKED = (
    *UNPACKED, "run.seed=12", "training.steps=24", "training.on_bad_loss=rollback", "optimizer.lr=8e-3",
    "optimizer.min_lr=8e-3", "checkpoint.every_steps=10", "survival.spike_factor=2", "survival.bad_steps=1",
)  # fmt: skip
"""The line of random letters is in step 22. Its loss was measured to be 8.0, the median before 2.7; step 4 has 9.2."""


def poisoned_data(runs):
    """26 texts, and two samples with an image."""
    texts = [conversation(f"text-{n}", f"Name finding {n}.", "Fracture. " * (1 + n % 4)) for n in range(26)]
    pictures = [conversation(f"poison-{n}", "What is shown?", "Noise.", ("square",)) for n in range(2)]
    return build_divided_by_zero(runs.data / "source", runs.folder / "data_poisoned", [*pictures, *texts])


def spiked_data(runs):
    """99 samples of one sentence, and one of random letters."""
    folder, draw = runs.folder / "data_spiked", random.Random(5)
    letters = "abcdefghijklmnopqrstuvwxyzäöüß§€$%0123456789"
    words = ("".join(draw.choice(letters) for _ in range(draw.randrange(2, 9))) for _ in range(40))
    texts = [
        conversation(f"text-{n}", "Name the finding.", "Fracture of the left femur. " * (1 + n % 3)) for n in range(99)
    ]
    (folder / "source").mkdir(parents=True)
    (folder / "source" / "processor").symlink_to(runs.data / "processor")
    return build(folder / "source", folder, [conversation("noise", "Name the finding.", " ".join(words)), *texts])


def poisoned(runs, name, *words, **options):
    """A run over the poisoned data."""
    data = runs.once("data poisoned", poisoned_data).result()
    return runs.train(name, *POISONED, f"data.path={data}", *words, **options)


def rolled_back(runs, grid):
    """Two bad steps, then the whole run again without their rows."""
    words = (f"checkpoint.every_steps={ROLLED_BACK[grid]}", "survival.bad_steps=2")
    words += ("checkpoint.async_save=true",) if grid == ONE else ()
    return poisoned(runs, f"rolled back {grid}", *words, grid=grid)


def never_had_them(runs):
    """A run whose rows were left out before it began."""
    folder = runs.folder / "never_had_them"
    (folder / "checkpoints").mkdir(parents=True)
    add_skip(folder / "checkpoints", SkippedRows(LEFT_OUT[0], LEFT_OUT[-1], from_step=4))
    return poisoned(runs, "never had them", folder=folder)


def rolled_back_once_too_often(runs):
    """Each bad step is gone back behind, the second one in vain."""
    words = ("checkpoint.every_steps=1", "survival.bad_steps=1", "survival.max_rollbacks=1")
    return poisoned(runs, "rolled back too often", *words)


def spiked(runs):
    """On the first stage no rank knows the loss."""
    data = runs.once("data spiked", spiked_data).result()
    return runs.train("spiked", *SPIKED, f"data.path={data}", grid="pp2")


@pytest.fixture(scope="module", autouse=True)
def flows(runs):
    """All runs of this module, started at once."""
    started = {flow: runs.submit(flow) for flow in (never_had_them, rolled_back_once_too_often, spiked)}
    return started | {grid: runs.submit(rolled_back, grid) for grid in ROLLED_BACK}


def samples_crc(run, rows):
    """What metrics.jsonl says of each step of four of these rows, worked out from the plan."""
    dataset = build_row_dataset(read_run_yaml(run.folder / "run.yaml"))
    crcs = [sum(zlib.crc32(name.encode()) for name in dataset[row].sample_ids) for row in rows]
    return [sum(crcs[first : first + 4]) for first in range(0, len(crcs), 4)]


def happened(run, *names):
    """These events, without their times."""
    return [
        {k: v for k, v in line.items() if k != "time"} for line in events.read(run.folder) if line["event"] in names
    ]


@pytest.mark.parametrize("grid", ROLLED_BACK)
def test_a_rolled_back_run_ends_like_one_that_never_had_the_rows(grid, flows):
    run, other = flows[grid].result().ok(), flows[never_had_them].result().ok()
    assert run.column("step") == other.column("step") == [1, 2, 3, 4, 5]
    assert run.column("samples_crc") == other.column("samples_crc") == samples_crc(run, [*range(8), *range(16, 28)])
    if grid == ONE:
        for key in ("loss", "grad_norm", "lr"):
            assert run.column(key) == other.column(key), key
    assert_same_losses({"never had them": other.column("loss"), grid: run.column("loss")}, LOSS_TOLERANCE)
    assert not any("skipped" in line for line in run.metrics())


@pytest.mark.parametrize("grid", ROLLED_BACK)
def test_what_happened_is_written_down(grid, flows):
    run, every = flows[grid].result().ok(), ROLLED_BACK[grid]
    *bad, back = happened(run, "bad_step", "rolled_back")
    assert [(line["step"], line["what"], line["applied"]) for line in bad] == [(3, "loss", False), (4, "loss", False)]
    why = back.pop("why")
    assert "2 bad steps in succession, the last: step 4: loss nan in samples poison-" in why
    to_step = 2 if every < 3 else 0
    assert back == {"event": "rolled_back", "to_step": to_step, "from_step": 4, "first_row": 8, "last_row": 15}
    assert f"rows 8 to 15 are left out. {why}" in run.said
    assert [line["resumed_from"] for line in happened(run, "launched")] == [None, to_step or None]
    assert happened(run, "save_failed", "failed") == [], "a save amid bad steps became whole before it was set aside"
    skips = [json.loads(line) for line in (run.checkpoints / "skipped_rows.jsonl").open()]
    assert skips == [{"first": 8, "last": 15, "from_step": 4}]
    aside = [path.name for path in run.checkpoints.glob("rolled-back-*")]
    assert aside == (["rolled-back-iter_0000003"] if every == 1 else [])
    assert tracker(run.folder) == "5"


def test_a_run_that_was_rolled_back_too_often_stops(flows):
    run = flows[rolled_back_once_too_often].result()
    assert_clear_error(run, "step 3: loss nan", "rollbacks so far: 1 (at steps 3)", "survival.max_rollbacks")
    assert "--resume goes on from the checkpoint of step 2" in run.said
    assert [(line["to_step"], line["first_row"], line["last_row"]) for line in happened(run, "rolled_back")] == [
        (2, 8, 11)
    ]


def test_a_spike_is_left_out_before_it_is_applied(flows):
    run = flows[spiked].result().ok()
    [bad, back] = happened(run, "bad_step", "rolled_back")
    assert (bad["step"], bad["what"], bad["applied"]) == (22, "spike", False) and 7 < bad["loss"] < 9
    assert (back["to_step"], back["from_step"], back["first_row"], back["last_row"]) == (20, 22, 84, 87)
    [line] = [json.loads(line) for line in (run.folder / "bad_steps.jsonl").open()]
    assert "noise" in line["sample_ids"] and len(line["sample_ids"]) == 4 and 2 < line["median"] < 4
    assert run.column("samples_crc") == samples_crc(run, [*range(84), *range(88, 100)])
    losses = run.column("loss")
    assert max(losses[:20]) > 2 * sorted(losses[:20])[10], "the first steps are as high, and are no spikes"
    assert max(losses[20:]) < 1
