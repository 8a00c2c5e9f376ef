"""Which folders a run is fed with, and what is refused."""

from fractions import Fraction
from pathlib import Path

import pytest

from megatron_medx.data.plan.mixture import MixtureSource, read_mixture
from megatron_medx.errors import DataError


@pytest.fixture
def mixture(tmp_path):
    """A function that writes a mixture of the folders a, b and c, which exist."""
    for name in "abc":
        (tmp_path / name).mkdir()

    def write(text: str) -> Path:
        path = tmp_path / "mixture.yaml"
        path.write_text(text)
        return path

    return write


def test_a_folder_is_a_mixture_of_one(tmp_path):
    assert read_mixture(tmp_path) == (MixtureSource(tmp_path),)


def test_weights_schedules_and_limits(mixture, tmp_path):
    text = """
sources:
  - {path: a, weight: 0.7, max_epochs: 2}
  - {path: b, weight: [[0, 0.3], [50e9, 0.1]]}
  - {path: FOLDER/c, weight: [[0, 0.0], [50e9, 0.2]]}
"""
    sources = read_mixture(mixture(text.replace("FOLDER", str(tmp_path))))
    assert [source.path for source in sources] == [tmp_path / name for name in "abc"]
    assert sources[0] == MixtureSource(tmp_path / "a", ((0, 0.7),), 2.0)
    assert sources[1].weight == ((0, 0.3), (50_000_000_000, 0.1)) and sources[1].max_epochs is None
    assert [float(source.weight_at(25 * 10**9)) for source in sources] == pytest.approx([0.7, 0.2, 0.1])


def test_no_weights_at_all(mixture):
    assert [source.weight for source in read_mixture(mixture("sources: [{path: a}, {path: b}]"))] == [None, None]


def test_mean_weights_are_exact():
    ramp = MixtureSource(Path("a"), ((0, 0.0), (100, 1.0)))
    assert ramp.weight_between(0, 50) == Fraction(1, 4)
    assert ramp.weight_between(50, 150) == Fraction(7, 8)
    assert ramp.weight_between(300, 400) == 1
    late = MixtureSource(Path("a"), ((100, 0.5), (200, 0.0)))
    assert late.weight_between(0, 100) == Fraction(1, 2)
    assert late.weight_between(0, 400) == Fraction(50 + 25, 400)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "sources = None"),
        ("sources: []", r"sources = \[\]"),
        ("- a", "sources = None"),
        ("sources: [a]", "source 0: a"),
        ("sources: [{weight: 1}]", "source 0: {'weight': 1}"),
        ("source: [{path: a}]", "unknown key source\n.*\n.*did you mean sources"),
        ("sources: [{path: a, wieght: 1}]", "unknown key wieght\n.*\n.*did you mean weight"),
        ("sources: [{path: a, color: 1}]", "unknown key color\n.*path, weight, max_epochs\n.*take it out"),
        ("sources: [{path: nowhere}]", "source 0: no folder .*nowhere"),
        ("sources: [{path: a}, {path: b}, {path: ./a}]", "sources 0 and 2 are the same folder"),
        ("sources: [{path: a, weight: 0.5}, {path: b, weight: 0.4}]", r"0.5 \+ 0.4 sum to 0.9\n.*1"),
        ("sources: [{path: a, weight: 1}, {path: b}]", "1 of 2 sources have a weight"),
        (
            "sources: [{path: a, weight: [[0, 0.5], [100, 1]]}, {path: b, weight: [[0, 0.5], [80, 0]]}]",
            r"at token 80 the weights 0.9 \+ 0 sum to 0.9",
        ),
        ("sources: [{path: a, weight: -0.5}, {path: b, weight: 1.5}]", "weight = -0.5\n.*not negative"),
        ("sources: [{path: a, weight: much}]", "weight = much"),
        ("sources: [{path: a, weight: .nan}]", "weight = nan"),
        ("sources: [{path: a, weight: []}]", r"weight = \[\]"),
        ("sources: [{path: a, weight: [[0, 1], [5]]}]", r"weight = \[\[0, 1\], \[5\]\]"),
        ("sources: [{path: a, weight: [[5, 1], [5, 1]]}]", "a knot at 5 tokens behind one at 5"),
        ("sources: [{path: a, weight: [[-5, 1]]}]", "tokens = -5"),
        ("sources: [{path: a, max_epochs: 0}]", "max_epochs = 0"),
        ("sources: [{path: a, max_epochs: -1}]", "max_epochs = -1"),
        ("sources: [{path: a", "no YAML file"),
    ],
)
def test_what_is_refused(mixture, text, message):
    with pytest.raises(DataError, match=message):
        read_mixture(mixture(text))


def test_a_path_that_is_neither(tmp_path):
    with pytest.raises(DataError, match="absent is not there"):
        read_mixture(tmp_path / "absent")
    (tmp_path / "list.txt").write_text("sources: [{path: a}]")
    with pytest.raises(DataError, match=r"list.txt is no mixture"):
        read_mixture(tmp_path / "list.txt")
