"""What the loader feeds beside what a run needs: the arithmetic, and what is left out of it."""

import itertools
import json
from types import SimpleNamespace

import pytest

from megatron_medx.config.flops import step_flops
from megatron_medx.data.inspection import bench
from megatron_medx.data.inspection.bench import bench_data, bench_lines
from megatron_medx.data.reader import DamagedSample
from megatron_medx.data.rows import build_row_dataset
from megatron_medx.errors import ConfigError

SLOW_ROWS = {(0, 1): 1, (1, 1): 3, (3, 1): 7, (0, 2): 2}
"""For workers and rows ahead of each: those ready in this process, ready from the workers and in their hands."""


@pytest.fixture
def config(run_config, write_folder, chat):
    """Rows of one sample: one with two images, two without."""
    records = [
        chat("images", "Which?", "Both", ("images/cr-chest.dcm", "images/ct-head.dcm")),
        chat("short", "What?", "Noise"),
        chat("long", "What do you see in this picture?", "A chest, seen from the front, upright."),
    ]
    config = run_config(write_folder(records))
    config.parallel.world_size, config.parallel.tensor = 4, 2
    return config


def batches(dataset):
    """The first 600 rows; each of the three different ones is made once."""
    made = {}
    for j in range(600):
        sample = tuple(dataset.plan.row(j))
        made[sample] = made.get(sample) or dataset[j]
    return [made[tuple(dataset.plan.row(j))] for j in range(600)]


@pytest.fixture
def fake_loader(monkeypatch):
    """Rows that take 2 ms, and those that are made before measuring starts 100 ms, by a clock that only they move.

    A list of what was asked of loaders.
    """
    asked, now_s = [], [0.0]

    class Loader:
        def __init__(self, dataset, rows, **options):
            asked.append(options)
            self.rows, self.taken = rows, []
            self.batches = batches(dataset)
            self.slow_rows = SLOW_ROWS[options["num_workers"], options["prefetch_rows"]]

        def __next__(self):
            self.taken.append(next(self.rows))
            now_s[0] += 0.1 if len(self.taken) <= self.slow_rows else 0.002
            return self.batches[self.taken[-1]]

        def close(self):
            asked[-1]["taken"] = self.taken

    monkeypatch.setattr(bench, "load_rows", Loader)
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))
    return asked


def test_rows_made_ahead_of_the_clock_do_not_count(config, fake_loader):
    config.data.prefetch_rows = 1
    result = bench_data(config, workers=(1, 0, 3), seconds_s=0.1)
    assert [found["warm_rows"] for found in result["loader"]] == [3, 1, 7]
    assert (
        [found["num_workers"] for found in result["loader"]] == [1, 0, 3] == [one["num_workers"] for one in fake_loader]
    )
    assert [found["rows_per_s"] for found in result["loader"]] == pytest.approx([500] * 3)
    assert [found["start_s"] for found in result["loader"]] == pytest.approx([0.1] * 3)
    # the rows of one measurement are not those of another
    rows = list(itertools.chain(*(one["taken"] for one in fake_loader)))
    assert rows == list(range(len(rows)))


def test_needed_is_flops_over_devices(config, fake_loader):
    result = bench_data(config, workers=(0,), seconds_s=0.05, peak_tflops=3.0, mfu=0.5)
    found, needed = result["loader"][0], result["needed"]
    dataset = build_row_dataset(config, align_tokens=2)
    rows = fake_loader[0]["taken"][found["warm_rows"] :]
    assert len(rows) == found["num_rows"]
    rows = [batches(dataset)[j] for j in rows]
    flops = []
    for row in rows:
        patches = [height * width for _, height, width in row.grids_I3.tolist()]
        lengths = (row.cu_seqlens[1:] - row.cu_seqlens[:-1]).tolist()
        flops.append(step_flops(config.model, lengths, patches, config.training.freeze)["total"])
    # two devices share a row; the table keeps a cost as float32
    assert needed["ranks_per_row"] == 2 and needed["flops_per_row"] == pytest.approx(sum(flops) / len(rows), rel=1e-6)
    seconds_s = sum(flops) / len(rows) / (2 * 3e12 * 0.5)
    assert needed["seconds_per_row_s"] == pytest.approx(seconds_s, rel=1e-6)
    tokens = sum(sum(row.sample_tokens) for row in rows)
    assert needed["tokens_per_s"] == pytest.approx(tokens / len(rows) / seconds_s, rel=1e-6)
    assert found["tokens_per_s"] == pytest.approx(tokens / found["measured_s"])
    images = sum(len(row.grids_I3) for row in rows)
    assert images > 0 and found["images_per_s"] == pytest.approx(images / found["measured_s"])
    assert result["ratio"] == pytest.approx(found["rows_per_s"] * seconds_s, rel=1e-6)
    assert result["workers_needed"] == -(-needed["rows_per_s"] // found["rows_per_s"])


def test_the_real_loader_is_measured_and_told(config):
    result = bench_data(config, seconds_s=0.2)
    found = result["loader"][0]
    assert found["num_workers"] == 0 and found["measured_s"] >= 0.2 and found["num_rows"] > 0
    assert found["rows_per_s"] == found["num_rows"] / found["measured_s"] and found["mb_per_s"] > 0
    assert set(result["parts"]["ms_per_row"]) == {"read", "tokenize", "decode"}
    assert all(milliseconds > 0 for milliseconds in result["parts"]["ms_per_row"].values())
    lines = bench_lines(result)
    assert any(line.split()[:1] == ["thread"] for line in lines) and lines[-1].startswith("so ")
    assert "2 devices x 989 TFLOP/s x 0.4" in " ".join(lines)
    assert json.loads(json.dumps(result)) == result


def test_damaged_samples_are_not_timed():
    def read(number):
        if number == 5:
            raise DamagedSample("changed", "the bytes", "copy it")
        return number

    dataset = SimpleNamespace(
        plan=SimpleNamespace(row=lambda j: [(0, 4), (1, 5), (0, 6)]), readers=[SimpleNamespace(read=read)] * 2
    )
    assert list(bench._stored(dataset, 0)) == [4, 6]


@pytest.mark.parametrize(
    "options", [{"workers": ()}, {"workers": (0, -1)}, {"seconds_s": 0}, {"peak_tflops": -1}, {"mfu": 1.5}, {"mfu": 0}]
)
def test_options_out_of_range_are_refused(config, options):
    with pytest.raises(ConfigError, match=r"found:  workers .*\nneeded: at least one number of workers"):
        bench_data(config, **options)
