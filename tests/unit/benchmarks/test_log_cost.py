"""What the benchmark of logging charges."""

import pytest

from benchmarks.log_cost import METERED, Meter, charged_s


def test_the_first_call_is_told_apart():
    ticks = iter([0.0, 5.0, 10.0, 10.25, 20.0, 20.5])
    meter = Meter()
    metered = meter.around(lambda: "as it was", "step", lambda: next(ticks))
    assert [metered() for _ in range(3)] == ["as it was"] * 3
    assert meter.seconds == {"step, first": 5.0, "step": 0.75}
    assert meter.num_calls == {"step, first": 1, "step": 2}


def test_a_call_that_fails_is_charged():
    meter = Meter()
    with pytest.raises(ZeroDivisionError):
        meter.around(lambda: 1 / 0, "step")()
    assert meter.num_calls == {"step, first": 1}


def test_norms_by_part_are_charged_as_much_as_they_take_longer_than_the_one_norm():
    seconds = {"step": 0.5, "step, first": 9.0, "norms by part": 0.75, "norm": 0.25, "writer thread, first": 0.125}
    num_calls = {"norms by part": 5, "norm": 5}
    assert charged_s({"seconds": seconds, "num_calls": num_calls}, 10) == {
        "step": 0.05,
        "norms by part": pytest.approx(0.1),
        "writer thread": 0.0125,
    }


def test_what_is_metered_exists():
    import importlib

    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()
    for place, name in METERED:
        module, _, attribute = place.partition(":")
        owner = importlib.import_module(module)
        assert callable(getattr(getattr(owner, attribute) if attribute else owner, name)), (place, name)
