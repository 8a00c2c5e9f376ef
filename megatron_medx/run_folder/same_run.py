"""Whether a configuration is that of the run in a folder: what may change when it goes on, and what may not."""

from pathlib import Path

from megatron_medx.config.checkpoint_folders import RUN_FILE
from megatron_medx.config.differences import differences
from megatron_medx.config.files import read_run_yaml
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import ConfigError

MAY_CHANGE = (
    *("parallel.", "survival.", "log.", "checkpoint.", "run.folder ", "run.license "),
    *("data.num_workers ", "data.prefetch_rows ", "data.decoder ", "data.max_bad_fraction ", "data.validation_"),
    *("training.elastic ", "training.on_bad_loss ", "training.recompute ", "training.recompute_vision "),
    *("training.validate_", "training.profile ", "training.nvtx ", "precision.gate_"),
)
"""Beginnings of the fields that say where, how fast and how safely a run goes, not what it learns.

Which rows a run is validated on is looked at when it is prepared (data/plan/validation.py).
"""

MAY_NOT_CHANGE = ("checkpoint.start_from ", "checkpoint.carry_optimizer ")
"""Of them, what a run began with."""

SHOWN = 12
"""Differences that a refusal names; of another recipe there may be a hundred."""


def former_config(folder: Path) -> RunConfig | None:
    """The configuration of the run in a folder, as its last launch had it; None where no run was prepared.

    Raises:
        ConfigError: its run.yaml cannot be read.
    """
    path = folder / RUN_FILE
    return read_run_yaml(path) if path.exists() else None


def changes(former: RunConfig, config: RunConfig) -> list[str]:
    """Differences that make it another run, as `optimizer.lr 0.002 in the folder and 0.001 asked for`.

    `training.steps` may grow, which extends a run. What a run starts from is written down as the one folder with
    tensors that was meant, so it is compared by whether that lies in what is asked for.
    """
    found = differences(former, config, names=("in the folder", "asked for"))
    different = [text for text in found if not text.startswith(MAY_CHANGE) or text.startswith(MAY_NOT_CHANGE)]
    if config.training.steps > former.training.steps:
        different = [text for text in different if not text.startswith("training.steps ")]
    if _lies_in(former.checkpoint.start_from, config.checkpoint.start_from):
        different = [text for text in different if not text.startswith("checkpoint.start_from ")]
    return different


def check_same_run(former: RunConfig, config: RunConfig, folder: Path, otherwise: str) -> None:
    """Refuse to go on with a run of another configuration.

    Args:
        former: the configuration of the run in the folder.
        config: what is asked for.
        folder: of the run.
        otherwise: what to do to have it all the same.

    Raises:
        ConfigError: with what differs.
    """
    different = changes(former, config)
    if not different:
        return
    shown = "".join(f"\n  {text}" for text in different[:SHOWN])
    more = f"\n  and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    raise ConfigError(
        f"{folder} holds a run of another configuration:{shown}{more}",
        "the configuration that the run began with, but for where, how fast and how safely it goes",
        f"give the new run another run.folder; or, to go on with {folder} and these changes, {otherwise}",
    )


def _lies_in(used: str, asked: str) -> bool:
    return bool(used and asked) and Path(used).absolute().is_relative_to(Path(asked).absolute())
