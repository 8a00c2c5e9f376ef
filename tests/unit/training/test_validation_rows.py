"""Which rows validations go through, one set after the other, and that none is read ahead between them."""

import itertools
from types import SimpleNamespace

import pytest

from megatron_medx.config.overrides import apply_overrides
from megatron_medx.recipes import get_recipe
from megatron_medx.training import validation_rows
from megatron_medx.training.validation_rows import SetRows, ValidationRows, one_pass


class Loader:
    """Hands over what it was made of, and remembers being closed."""

    def __init__(self, rows):
        self.rows, self.is_closed = rows, False

    def __next__(self):
        assert not self.is_closed
        return next(self.rows)

    def close(self):
        self.is_closed = True


@pytest.mark.parametrize("rows", [[5], [5, 3, 9]])
def test_a_pass_has_every_row_and_leaves_no_loader_open(rows):
    loaders = []

    def start(wanted):
        loaders.append(Loader(wanted))
        return loaders[-1]

    passed = one_pass(start, rows)
    assert not loaders, "nothing is read before it is asked for"
    assert [next(passed) for _ in rows] == rows
    (loader,) = loaders
    assert loader.is_closed, "with the last row"


def test_sets_follow_one_another_without_end(monkeypatch):
    words = ["training.validate_every_steps=2", "data.validation_sets.b=y", "data.validation_path=x"]
    config = apply_overrides(get_recipe("demo"), [*words, "parallel.virtual_pipeline=2"])
    own = {"validation": [4, 7], "b": [1]}
    monkeypatch.setattr(validation_rows, "open_set", lambda config, name: name)
    monkeypatch.setattr(ValidationRows, "_open", lambda self, name: SetRows(name, 2 * len(own[name]), own[name]))
    monkeypatch.setattr(
        validation_rows, "start_loader", lambda config, dataset, rows: Loader((dataset, row) for row in rows)
    )
    rows = ValidationRows(config)
    assert rows.names == ("validation", "b")
    one_validation = [("validation", 4), ("validation", 7), ("b", 1)]
    assert list(itertools.islice(rows, 9)) == 3 * one_validation
    assert [rows.num_batches(name) for name in rows.names] == [2, 1], "two rows a batch"
    assert [rows.num_microbatches(name) for name in rows.names] == [4, 2], "one a chunk"


def test_a_set_is_dealt_like_steps(monkeypatch):
    config = apply_overrides(
        get_recipe("demo"), ["training.validate_every_steps=2", "data.validation_path=x", "training.validate_rows=6"]
    )
    dataset = SimpleNamespace(plan=SimpleNamespace(rows_per_epoch=9), cost=lambda row: row)
    monkeypatch.setattr(validation_rows, "open_set", lambda config, name: dataset)
    dealt = []
    for rank in (0, 1):
        grid = SimpleNamespace(get_data_parallel_rank=lambda rank=rank: rank, get_data_parallel_world_size=lambda: 2)
        monkeypatch.setattr(validation_rows, "mpu", grid)
        of_set = ValidationRows(config).sets["validation"]
        assert of_set.num_rows == 6
        dealt.append(of_set.own)
    assert sorted(itertools.chain(*dealt)) == list(range(6)) and len(dealt[0]) == 3
