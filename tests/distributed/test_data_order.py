"""The order of data over a whole run: the same samples in every step, whatever the ranks, workers, stops and damage.

Two sources, one of them with a share that rises along the run. `samples_crc` of a step tells which samples it held.
"""

import json

import pyarrow.parquet as pq
import pytest
from agreement import LOSS_TOLERANCE, assert_same_losses
from grids import ONE, PACKED, SMALL
from medx_runs import stopped_at
from small_data import build, conversation

STEPS = 24
"""Of 8 rows each: three blocks of the plan, whose shares differ."""

STOPS = (
    (6, "dp2", "data.num_workers=2"),
    (12, "tp2 dp2", "data.num_workers=0"),
    (18, "pp2 vpp2", "data.num_workers=0"),
    (STEPS, "dp4", "data.prefetch_rows=5"),
)
"""Last step, grid and loader of each part of a run that is stopped three times."""


SPOILED = [
    conversation("gone", "What is shown?", "Nothing.", ("no-such-file",)),
    conversation("word", "What is <|image_pad|>?", "A word."),
    conversation("endless", "Why?", "So it goes on. " * 300),
]
"""The build rejects two of these; the third fits no row."""


def texts(runs, name, more=()):
    """A data folder of forty short texts."""
    folder = runs.folder / name
    source = folder / "source"
    source.mkdir(parents=True)
    (source / "processor").symlink_to(runs.data / "processor")
    records = [conversation(f"text-{n}", f"Finding {n}?", "Edema. " * (1 + n % 7)) for n in range(40)]
    return build(source, folder, [*records, *more])


def mixture(runs):
    """The small data beside a source of short texts."""
    texts(runs, "data_texts")
    path = runs.folder / "mixture.yaml"
    ramp = [[0, 0.0], [48_000, 0.75]]
    rest = [[tokens, 1 - weight] for tokens, weight in ramp]
    sources = [{"path": str(runs.data), "weight": rest}, {"path": "data_texts", "weight": ramp}]
    path.write_text(json.dumps({"sources": sources}))  # JSON is YAML
    return path


def words(runs, *more):
    """What all runs of this module have."""
    data = runs.once("mixture of two", mixture).result()
    length = ("training.global_batch_rows=8", f"training.steps={STEPS}", "checkpoint.every_steps=6")
    return (*SMALL, *PACKED, f"data.path={data}", *length, *more)


def undisturbed(runs):
    """All steps on one process."""
    return runs.train("order undisturbed", *words(runs))


def stopped_and_resumed(runs):
    """The same run in four parts, each on another grid."""
    run = None
    for last, grid, loader in STOPS:
        given = words(runs, loader, f"megatron.exit_interval={last}")
        if run is None:
            run = runs.train(f"order part {last}", *given, grid=grid)
        else:
            run = runs.resume(run, f"order part {last}", *given, grid=grid)
        if run.code:
            break
    return run


def damaged(runs):
    """Three samples cannot be used, and two more change after the build; a run with that many allowed goes on."""
    folder = texts(runs, "data_damaged", SPOILED)
    index = pq.read_table(folder / "index.parquet").to_pylist()
    [shard] = (folder / "shards").iterdir()
    content = bytearray(shard.read_bytes())
    for number in (7, 23):
        content[index[number]["members"][0]["offset"]] ^= 1
    allowed = (*SMALL, *PACKED, f"data.path={folder}", "data.max_bad_fraction=0.08")
    sound = runs.train("order sound", *allowed)
    shard.write_bytes(content)
    return sound, [runs.train(f"order damaged {grid}", *allowed, grid=grid) for grid in (ONE, "tp2 pp2")]


@pytest.fixture(scope="module", autouse=True)
def flows(runs):
    """All runs of this module, started at once."""
    return {flow: runs.submit(flow) for flow in (undisturbed, stopped_and_resumed, damaged)}


def test_stops_on_other_ranks_and_workers_change_no_step(flows):
    whole, parts = (flows[flow].result().ok() for flow in (undisturbed, stopped_and_resumed))
    assert parts.column("step") == whole.column("step") == list(range(1, STEPS + 1))
    for key in ("samples_crc", "tokens", "images"):
        assert parts.column(key) == whole.column(key), key
    assert len(set(whole.column("samples_crc"))) == STEPS, "steps differ from one another"
    assert_same_losses({"undisturbed": whole.column("loss"), "in parts": parts.column("loss")}, LOSS_TOLERANCE)


def test_the_share_of_a_source_rises_along_the_run(flows):
    """Only the other source has images."""
    images = flows[undisturbed].result().ok().column("images")
    assert sum(images[:8]) > 2 * sum(images[16:]), images


def test_an_earlier_checkpoint_goes_on_with_the_same_steps(flows, runs):
    whole = flows[undisturbed].result().ok()
    source = stopped_at(12, whole, runs.folder / "order_stopped_at_12")
    resumed = runs.resume(source, "order resumed at 12", *words(runs)).ok()
    for key in ("loss", "samples_crc"):
        assert resumed.column(key) == whole.column(key), key


def test_samples_that_cannot_be_used_are_named_with_the_reason(flows):
    sound, _ = flows[damaged].result()
    folder = sound.ok().folder.parent / "data_damaged"
    files = [folder / "rejects.jsonl", sound.folder / "data" / "rejects.jsonl"]
    rejects = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    reasons = {reject["id"]: reject["reason"] for reject in rejects}
    assert reasons == {"gone": "missing file", "word": "cannot be rendered", "endless": "too long for a row"}


def test_damaged_samples_are_left_out_on_all_ranks_alike(flows):
    sound, (alone, shared) = flows[damaged].result()
    assert alone.ok().column("samples_crc") == shared.ok().column("samples_crc")
    assert_same_losses({ONE: alone.column("loss"), "tp2 pp2": shared.column("loss")}, LOSS_TOLERANCE)
    same = [a == b for a, b in zip(alone.column("samples_crc"), sound.ok().column("samples_crc"), strict=True)]
    assert not all(same), "a damaged sample was met"
    for run in (alone, shared):
        rejects = [json.loads(line) for line in (run.folder / "rejects.jsonl").read_text().splitlines()]
        assert {reject["id"] for reject in rejects} <= {7, 23} and len(rejects) == len({r["id"] for r in rejects})
        assert all("changed since it was built" in reject["found"] for reject in rejects)
