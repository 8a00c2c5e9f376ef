"""What Megatron asks us for: the model of a stage and the rows of a rank."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator

import torch
from megatron.core import mpu
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training import get_args
from megatron.training.arguments import core_transformer_config_from_args

from megatron_medx.config.run import RunConfig
from megatron_medx.data.microbatch import Microbatch
from megatron_medx.data.rows import build_row_dataset
from megatron_medx.models.initial_weights import set_initial_weights
from megatron_medx.models.megatron_config import decoder_architecture
from megatron_medx.models.qwen3_vl import PART_PREFIXES, Qwen3VLModel
from megatron_medx.models.specs import layer_specs
from megatron_medx.parallel.groups import solo_groups
from megatron_medx.parallel.row_dealing import deal_rows


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
        )
        set_initial_weights(stage, run.run.seed)
        freeze_parts(stage, run.training.freeze)
        mark_experts(stage)
        return stage

    run = config
    return model_provider


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


def make_dataset_provider(config: RunConfig) -> Callable:
    """The function with which Megatron asks for data; every rank builds its own, nothing is sent between ranks.

    With virtual pipeline stages Megatron asks once a model chunk: the chunks of a rank go through the same rows, a few
    microbatches apart, so they share one dataset and each row is made and its cost estimated once.
    """
    rows_per_step = config.training.global_batch_rows

    @functools.cache
    def rows() -> tuple[Callable[[int], Microbatch], Callable[[int], int]]:
        grid, data = config.parallel, config.data
        align = math.lcm(data.sample_align_tokens, grid.tensor * grid.context)
        dataset = build_row_dataset(config, align, data.seq_len_tokens if data.packing else None)
        if grid.virtual_pipeline == 1:
            return dataset.__getitem__, dataset.cost
        row_at = functools.lru_cache(maxsize=2 * grid.pipeline)(dataset.__getitem__)
        return row_at, functools.lru_cache(maxsize=rows_per_step)(dataset.cost)

    def dataset_provider(num_samples: list[int], vp_stage: int | None = None) -> tuple:
        first_row = get_args().consumed_train_samples
        rank, size = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
        return rows_of_rank(*rows(), first_row, rows_per_step, rank, size), None, None

    dataset_provider.is_distributed = True
    return dataset_provider


def rows_of_rank(
    row_at: Callable[[int], Microbatch],
    cost_of: Callable[[int], float],
    first_row: int,
    rows_per_step: int,
    rank: int,
    size: int,
) -> Iterator[Microbatch]:
    """The rows that one rank takes of each step, dealt by estimated cost; a step holds the same rows on any grid.

    Args:
        row_at: makes the row of an index.
        cost_of: the estimated cost of that row, the same on every rank.
        first_row: rows consumed by all ranks before, where a step begins; the only state that a resume needs.
        rows_per_step: of all ranks.
        rank, size: place among the data-parallel ranks, which divide the rows of a step.
    """
    for first in itertools.count(first_row, rows_per_step):
        step = range(first, first + rows_per_step)
        for place in deal_rows([cost_of(row) for row in step], size)[rank]:
            yield row_at(step[place])
