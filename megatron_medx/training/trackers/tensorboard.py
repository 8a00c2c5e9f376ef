"""TensorBoard: event files in the run folder."""

from collections.abc import Mapping
from pathlib import Path

from megatron_medx.config.run import RunConfig

FLUSH_S = 30
"""A run that is killed loses at most what it told in the last so many seconds; metrics.jsonl loses nothing."""


class TensorBoard:
    """Events under `<run folder>/tensorboard`; of repeated steps it shows the later ones."""

    name = "TensorBoard"

    def start(self, config: RunConfig, folder: Path, first_step: int) -> None:
        """Open a new event file."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step, flush_secs=FLUSH_S)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars, all in one event: one a scalar would take several times as long to write."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.file_writer.add_summary(Summary(value=scalars), step)

    def tell(self, step: int, name: str, text: str) -> None:
        """Add a text."""
        self._writer.add_text(name, text, step)

    def finish(self) -> None:
        """Close the file."""
        self._writer.close()
