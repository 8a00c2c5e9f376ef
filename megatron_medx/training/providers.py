"""What Megatron asks us for: the model of a stage and the rows of a rank."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from megatron.core import mpu
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training import get_args
from megatron.training.arguments import core_transformer_config_from_args

from megatron_medx.config.checkpoint_folders import CHECKPOINTS
from megatron_medx.config.model import ModelConfig
from megatron_medx.config.run import RunConfig
from megatron_medx.data.loader import RowLoader, load_rows
from megatron_medx.data.microbatch import Microbatch
from megatron_medx.data.rows import RowDataset, row_lengths
from megatron_medx.models.initial_weights import set_initial_weights
from megatron_medx.models.megatron_config import decoder_architecture
from megatron_medx.models.qwen3_vl import PART_PREFIXES, Qwen3VLModel
from megatron_medx.models.specs import layer_specs
from megatron_medx.parallel.groups import solo_groups
from megatron_medx.parallel.image_dealing import no_images, own_images
from megatron_medx.parallel.row_dealing import deal_rows
from megatron_medx.run_folder.names import DATA, REJECTS_FILE
from megatron_medx.run_folder.skipped_rows import merged, read_skips, row_at
from megatron_medx.training.gradient_norms import mark_parts


def make_model_provider(config: RunConfig, use_transformer_engine: bool) -> Callable:
    """The function with which Megatron builds each stage: seeded weights, frozen parts."""

    def model_provider(
        pre_process: bool = True,
        post_process: bool = True,
        vp_stage: int | None = None,
        config: TransformerConfig | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> Qwen3VLModel:
        stage = Qwen3VLModel(
            run.model,
            config or transformer_config(run),
            layer_specs(run.model, use_transformer_engine),
            pg_collection,
            solo_groups(),
            pre_process=pre_process,
            post_process=post_process,
            vp_stage=vp_stage,
            recompute_vision=run.training.recompute_vision,
            fp8_vision=run.precision.fp8_vision,
            tower_rests=tower_may_rest(run),
        )
        set_initial_weights(stage, run.run.seed)
        mark_parts(stage)
        freeze_parts(stage, run.training.freeze)
        mark_experts(stage)
        return stage

    run = config
    return model_provider


def tower_may_rest(config: RunConfig) -> bool:
    """Whether a row without images may leave the tower out.

    Gradients that are reduced during the backward pass wait for those of all parameters. And a backward pass needs
    something to pass on to: with frozen embeddings that is what images would be written into.
    """
    return not get_args().overlap_grad_reduce and "language" not in config.training.freeze


def transformer_config(config: RunConfig) -> TransformerConfig:
    """Megatron's configuration from Megatron's arguments, checked against the architecture."""
    derived = core_transformer_config_from_args(get_args())
    for name, value in decoder_architecture(config.model).items():
        found = getattr(derived, name)
        assert found == value, f"Megatron's arguments give {name}={found}, the architecture is {value}"
    derived.variable_seq_lengths = not config.data.packing  # unpacked rows are as long as their sample
    derived.hetereogenous_dist_checkpoint = True  # one checkpoint entry a layer: names without stacking
    return derived


def freeze_parts(stage: torch.nn.Module, freeze: tuple[str, ...]) -> None:
    """Exclude the parameters of the named parts from training."""
    prefixes = tuple(prefix for part in freeze for prefix in PART_PREFIXES[part])
    for name, parameter in stage.named_parameters():
        if prefixes and name.startswith(prefixes):
            parameter.requires_grad = False


def mark_experts(stage: torch.nn.Module) -> None:
    """Give experts an optimizer of their own on every grid.

    Megatron does so where expert or tensor parallelism is above 1, and a checkpoint with one optimizer cannot be loaded
    into two.
    """
    for name, parameter in stage.named_parameters():
        if ".experts." in name:
            parameter.allreduce = False  # Megatron's mark: reduced over the ranks that hold the same experts


def make_dataset_provider(
    config: RunConfig, watch: Callable[[RowLoader], None], validation: Iterable[Microbatch] | None = None
) -> Callable:
    """The function with which Megatron asks for data; every rank reads its own, nothing is sent between ranks.

    With virtual pipeline stages Megatron asks once a model chunk: the chunks of a rank go through the same rows, a few
    microbatches apart, so each row is made once and handed to all of them.

    Args:
        config: the run.
        watch: told of the loader, which knows how long steps have waited for rows.
        validation: this rank's microbatches of one validation after another; None: there are none.
    """

    @functools.cache
    def rows() -> Iterator:
        loader = load_rank_rows(config, get_args().consumed_train_samples)
        watch(loader)
        return iter(itertools.tee(loader, config.parallel.virtual_pipeline))

    @functools.cache
    def validation_rows() -> Iterator:
        return iter(itertools.tee(validation, config.parallel.virtual_pipeline))

    def dataset_provider(num_samples: list[int], vp_stage: int | None = None) -> tuple:
        return next(rows()), None if validation is None else next(validation_rows()), None

    dataset_provider.is_distributed = True
    return dataset_provider


def load_rank_rows(config: RunConfig, position: int) -> RowLoader:
    """The microbatches of this rank from a position of the run on, without skipped rows, read ahead of the step."""
    dataset = rank_dataset(config, config.run_folder / DATA)
    rank, size = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
    skipped = merged(read_skips(config.run_folder / CHECKPOINTS))
    rows = rows_of_rank(dataset.cost, position, config.training.global_batch_rows, rank, size, skipped)
    return start_loader(config, dataset, rows)


def rank_dataset(config: RunConfig, tables: Path) -> RowDataset:
    """The rows of a run, or of its validation, with the images that this rank encodes."""
    return RowDataset(
        config,
        tables,
        **row_lengths(config),
        wanted=wanted_images(config.model),
        rejects=config.run_folder / REJECTS_FILE if speaks_for_its_rows() else None,
    )


def start_loader(config: RunConfig, dataset: RowDataset, rows: Iterator[int]) -> RowLoader:
    """These rows, read ahead of the step as the run says."""
    workers, ahead = config.data.num_workers, config.data.prefetch_rows
    return load_rows(dataset, rows, num_workers=workers, prefetch_rows=ahead, pin=torch.cuda.is_available())


def speaks_for_its_rows() -> bool:
    """Whether this is the first of the ranks that share each row."""
    return mpu.get_model_parallel_group().rank() == 0 and mpu.get_context_parallel_rank() == 0


def wanted_images(model: ModelConfig) -> Callable[[torch.Tensor], list[int]]:
    """A function, grids of a row's images -> numbers of those that this rank encodes, for worker processes too."""
    if not mpu.is_pipeline_first_stage():
        return no_images
    group = mpu.get_tensor_and_context_parallel_group()
    return functools.partial(own_images, model, group.size(), group.rank())


def rows_of_rank(
    cost_of: Callable[[int], float],
    first_position: int,
    rows_per_step: int,
    rank: int,
    size: int,
    skipped: Sequence[tuple[int, int]] = (),
) -> Iterator[int]:
    """The rows that one rank takes of each step, dealt by estimated cost; a step holds the same rows on any grid.

    Args:
        cost_of: the estimated cost of a row, the same on every rank.
        first_position: rows consumed by all ranks before, where a step begins; the only state that a resume needs.
        rows_per_step: of all ranks.
        rank, size: place among the data-parallel ranks, which divide the rows of a step.
        skipped: ranges of rows that no step holds (run_folder/skipped_rows.py).
    """
    for first in itertools.count(first_position, rows_per_step):
        rows = [row_at(position, skipped) for position in range(first, first + rows_per_step)]
        for place in deal_rows([cost_of(row) for row in rows], size)[rank]:
            yield rows[place]
