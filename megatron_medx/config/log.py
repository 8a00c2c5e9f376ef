"""The section `log` of a run: what is written and told while it trains."""

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class LogSection:
    """What is written while training."""

    every_steps: int = 1
    """Steps between lines on the terminal when it is not interactive; `metrics.jsonl` has every step."""
    tensorboard: bool = True
    """Write TensorBoard events to `<run.folder>/tensorboard`."""
    ranks_every_steps: int = 10
    """Steps between lines of `ranks.jsonl`: times and memory of every rank, gathered from all; 0 means never."""
    wandb_project: str = ""
    """Weights & Biases project to tell of the run; empty: none. `WANDB_MODE=offline` needs no network."""
    mlflow_uri: str = ""
    """MLflow tracking server, or a folder as `file:PATH`, that the run is also told to; empty means none."""
    mlflow_experiment: str = "megatron-medx"
    """MLflow experiment that the run belongs to."""
    memory_history: bool = False
    """Record the allocations of the GPU's memory, so that running out of it leaves a snapshot with their stacks."""
