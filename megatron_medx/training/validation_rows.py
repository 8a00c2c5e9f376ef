"""Which rows a rank looks at in a validation: those of each set, in the sets' order, the same in every validation."""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from megatron.core import mpu

from megatron_medx.config.run import RunConfig
from megatron_medx.config.validation import validated_rows, validation_config, validation_sets
from megatron_medx.data.loader import RowLoader
from megatron_medx.data.microbatch import Microbatch
from megatron_medx.data.plan.validation import VALIDATION_TABLES
from megatron_medx.data.rows import RowDataset
from megatron_medx.data.token_bytes import token_bytes
from megatron_medx.run_folder.names import DATA
from megatron_medx.training.providers import rank_dataset, rows_of_rank, start_loader
from megatron_medx.training.sample_losses import SampleMeter


def open_set(config: RunConfig, name: str) -> RowDataset:
    """The rows of a validation set, with the images that this rank encodes; the first ones are those looked at.

    Args:
        config: the run, whose launcher has written the tables.
        name: of `validation_sets`.
    """
    return rank_dataset(validation_config(config, name), config.run_folder / DATA / VALIDATION_TABLES / name)


@dataclass(frozen=True, slots=True)
class SetRows:
    """One set as this rank sees it."""

    dataset: RowDataset
    num_rows: int
    """Looked at by all ranks together."""
    own: list[int]
    """Of these the rows of this rank, dealt by estimated cost."""


class ValidationRows:
    """The microbatches of this rank of one validation after another, without end; files are opened when first asked.

    Args:
        config: the run.
    """

    def __init__(self, config: RunConfig):
        self._config = config
        self.names = tuple(validation_sets(config)) if config.training.validate_every_steps else ()

    def __iter__(self) -> Iterator[Microbatch]:
        passes = [
            functools.partial(one_pass, functools.partial(start_loader, self._config, rows.dataset), rows.own)
            for rows in self.sets.values()
        ]
        return itertools.chain.from_iterable(start() for start in itertools.cycle(passes))

    @functools.cached_property
    def sets(self) -> dict[str, SetRows]:
        """By name, in the order in which they are looked at."""
        return {name: self._open(name) for name in self.names}

    @functools.cached_property
    def meter(self) -> SampleMeter:
        """Sums up their losses; all sets are read with the run's tokenizer."""
        return SampleMeter(token_bytes(next(iter(self.sets.values())).dataset.encoder.tokenizer))

    def num_batches(self, name: str) -> int:
        """Global batches in which a set is looked at."""
        return self.sets[name].num_rows // self._config.training.global_batch_rows

    def num_microbatches(self, name: str) -> int:
        """Microbatches that this rank computes of a set; a row is one for each chunk of virtual stages."""
        return len(self.sets[name].own) * self._config.parallel.virtual_pipeline

    def _open(self, name: str) -> SetRows:
        dataset = open_set(self._config, name)
        rank, size = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
        num_rows = validated_rows(self._config, dataset.plan.rows_per_epoch)
        rows = rows_of_rank(dataset.cost, 0, self._config.training.global_batch_rows, rank, size)
        return SetRows(dataset, num_rows, list(itertools.islice(rows, num_rows // size)))


def one_pass(start: Callable[[Iterator[int]], RowLoader], rows: list[int]) -> Iterator[Microbatch]:
    """Rows of this rank once; when the last is handed over nothing is read ahead any more, and no worker runs.

    Args:
        start: makes the loader of one pass.
        rows: at least one.
    """
    loader = start(iter(rows))
    try:
        for _ in rows[1:]:
            yield next(loader)
        last = next(loader)
    finally:
        loader.close()
    yield last
