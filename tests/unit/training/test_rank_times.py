"""ranks.jsonl: which steps are due, what is gathered, and the clock of a rank's own gradients."""

import itertools

import pytest
import torch

from megatron_medx.recipes import get_recipe
from megatron_medx.training import rank_times
from megatron_medx.training.rank_times import GradientClock, RankTimes
from megatron_medx.training.step_lines import read_metrics


@pytest.fixture
def two_ranks(monkeypatch):
    """The other rank, 0, says ten times what this one says; a clock that ticks by the second; 3 GB at most."""

    def all_gather(of_all, mine):
        of_all.copy_(torch.cat([10 * mine, mine]))

    ticks = itertools.count()
    monkeypatch.setattr(rank_times.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(rank_times.dist, "all_gather_into_tensor", all_gather)
    monkeypatch.setattr(rank_times.torch.cuda, "current_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(rank_times.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(rank_times, "peak_memory_bytes", lambda: 3_000_000_000)


def times(folder, every_steps):
    config = get_recipe("demo")
    config.log.ranks_every_steps = every_steps
    return RankTimes(config, folder)


def test_a_step_that_is_due_has_a_line_with_lists_by_rank(two_ranks, tmp_path):
    ranks, lines = times(tmp_path, 2), []
    for step in range(1, 5):
        ranks.start_step(step)
        ranks.gradients_ready()
        lines.append(ranks.gather(step, step_time_s=2.5, data_wait_s=0.125))
    assert lines[0] is None and lines[2] is None
    values = {"step_time_s": [25.0, 2.5], "busy_s": [10.0, 1.0], "data_wait_s": [1.25, 0.125], "memory_gb": [30.0, 3.0]}
    assert lines[1] == {"step": 2, **values} and lines[3] == {"step": 4, **values}


def test_no_step_is_due_where_none_is_asked_for(two_ranks, tmp_path):
    ranks = times(tmp_path, 0)
    assert not any(ranks.is_due(step) for step in range(1, 30))
    ranks.start_step(1)
    ranks.gradients_ready()
    assert ranks.gather(1, 1.0, 0.0) is None and not list(tmp_path.iterdir())


def test_a_resume_drops_the_lines_that_it_repeats(tmp_path):
    for steps in ((10, 20, 30), (20, 40)):
        ranks = times(tmp_path, 10)
        for step in steps:
            ranks.write({"step": step, "busy_s": [float(len(steps))]})
        ranks.close()
    lines = read_metrics(tmp_path / "ranks.jsonl")
    assert [(line["step"], line["busy_s"]) for line in lines] == [(10, [3.0]), (20, [2.0]), (40, [2.0])]


def test_the_clock_needs_both_marks_and_is_read_once(two_ranks):
    clock = GradientClock()
    clock.stop()
    assert clock.read_s() == 0.0
    clock.start()
    assert clock.read_s() == 0.0, "the gradients were never ready"
    clock.start()
    clock.stop()
    clock.stop()
    assert clock.read_s() == 2.0, "the last pass counts"
    assert clock.read_s() == 0.0


def test_on_a_gpu_its_own_clock_is_read_and_nothing_waits_before(monkeypatch):
    waited = []

    class Event:
        made = itertools.count()

        def __init__(self, enable_timing):
            assert enable_timing
            self.number = next(self.made)

        def record(self):
            self.at_ms = 1500.0 * self.number

        def synchronize(self):
            waited.append(self.number)

        def elapsed_time(self, other):
            return other.at_ms - self.at_ms

    monkeypatch.setattr(rank_times.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(rank_times.torch.cuda, "Event", Event)
    clock = GradientClock()
    clock.start()
    clock.stop()
    assert waited == []
    assert clock.read_s() == 1.5 and waited == [1]
