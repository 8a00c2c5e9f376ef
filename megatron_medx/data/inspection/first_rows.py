"""The first rows of a data folder for a network that no run is configured for: one sample each, unpadded."""

from pathlib import Path

from megatron_medx.config.model import ModelConfig
from megatron_medx.config.run import RunConfig
from megatron_medx.data.microbatch import Microbatch
from megatron_medx.data.rows import build_row_dataset

ROW_TOKENS = 1024
"""A longer sample loses what a run's row of this size would make it lose; its logits with Qwen's vocabulary are
0.6 GB."""


def first_rows(folder: Path, model: ModelConfig, processor: Path, number: int) -> list[Microbatch]:
    """The first rows of a folder built by `medx data build`, in the order of a run with the default seed.

    Args:
        folder: the data.
        model: sizes of the network that they are for.
        processor: directory of its tokenizer and image processor.
        number: of rows.

    Raises:
        ConfigError, DataError: as `build_row_dataset`.
    """
    config = RunConfig(model=model)
    config.data.path, config.data.processor = str(folder), str(processor)
    config.data.packing, config.data.seq_len_tokens, config.data.max_bad_fraction = False, ROW_TOKENS, 1.0
    config.data.max_pixels = ROW_TOKENS // 2 * model.vision.token_side_px**2
    dataset = build_row_dataset(config)
    return [dataset[row] for row in range(number)]
