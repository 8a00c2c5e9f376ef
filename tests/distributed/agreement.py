"""What it means that two runs are the same, and the message when they are not."""

import warnings

import torch
from medx_runs import Run
from torch.distributed.checkpoint import FileSystemReader

from megatron_medx.checkpoint.megatron_files.torch_dist import TorchDistFolder

LOSS_TOLERANCE = 1e-5
NORM_TOLERANCE, MOMENT_TOLERANCE = 1e-5, 1e-5
"""Of themselves: of the global gradient norm, of the norm of a tensor's first moment."""


def loss_table(losses: dict[str, list[float]]) -> str:
    """Losses by step, one row a run, with the largest difference from the first row."""
    reference = next(iter(losses.values()))
    width = max(map(len, losses))
    rows = []
    for name, values in losses.items():
        worst = max((abs(a - b) for a, b in zip(reference, values, strict=False)), default=float("nan"))
        numbers = " ".join(f"{value:.7f}" for value in values)
        rows.append(f"{name:<{width}}  {numbers}  worst {worst:.1e}")
    return "\n" + "\n".join(rows)


def assert_same_losses(losses: dict[str, list[float]], tolerance: float) -> None:
    """All rows equal the first one; the message is the whole table."""
    reference = next(iter(losses.values()))
    for values in losses.values():
        assert len(values) == len(reference), loss_table(losses)
        assert all(abs(a - b) <= tolerance for a, b in zip(reference, values, strict=True)), loss_table(losses)


def assert_clear_error(run: Run, *words: str, code: int = 2) -> None:
    """Ended with `code`, said the three parts and `words`, and showed no traceback."""
    assert run.code == code, f"code {run.code}\n{run.said}"
    assert "Traceback" not in run.said, run.said
    for word in ("found:", "needed:", "do:", *words):
        assert word in run.said, f"{word!r} not in\n{run.said}"


def weights(run: Run, step: int) -> dict[str, torch.Tensor]:
    """Checkpoint key -> tensor of the model."""
    folder = TorchDistFolder(run.checkpoints / f"iter_{step:07d}")
    return {key: folder.read(key) for key in folder.specs}


def first_moments(run: Run, step: int) -> dict[str, torch.Tensor]:
    """Parameter -> Adam's mean gradient."""
    return moments(run, step, "exp_avg")


def moments(run: Run, step: int, name: str) -> dict[str, torch.Tensor]:
    """Parameter -> one of Adam's moments, `exp_avg` or `exp_avg_sq`."""
    folder, prefix = run.checkpoints / f"iter_{step:07d}", f"optimizer.state.{name}."
    index = FileSystemReader(folder).read_metadata().state_dict_metadata
    moments = {key: torch.empty(entry.size) for key, entry in index.items() if key.startswith(prefix)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        torch.distributed.checkpoint.load(moments, checkpoint_id=folder, no_dist=True)
    return {key.removeprefix(prefix): tensor for key, tensor in moments.items()}


def moment_differences(reference: Run, run: Run, step: int) -> dict[str, float]:
    """Parameter -> difference of Adam's first moments, of the reference's norm; largest first."""
    expected, found = first_moments(reference, step), first_moments(run, step)
    assert found.keys() == expected.keys() and len(found) > 60, found.keys() ^ expected.keys()
    differences = {key: ((found[key] - value).norm() / value.norm()).item() for key, value in expected.items()}
    return dict(sorted(differences.items(), key=lambda item: -item[1]))
