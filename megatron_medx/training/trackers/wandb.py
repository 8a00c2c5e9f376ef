"""Weights & Biases: online, or with WANDB_MODE=offline files that `wandb sync` sends later."""

import dataclasses
import html
from collections.abc import Mapping
from pathlib import Path

from megatron_medx.config.run import RunConfig
from megatron_medx.training.trackers.tracker import keep_id, kept_id


class WeightsAndBiases:
    """A run of `log.wandb_project`, named like the run folder; its files lie under `<run folder>/wandb`."""

    name = "W&B"

    def start(self, config: RunConfig, folder: Path, first_step: int) -> None:
        """Begin the run, or go on with it by its id. What a terminal shows, code and git stay here."""
        import wandb

        self._run = wandb.init(
            project=config.log.wandb_project,
            name=folder.name,
            dir=folder,
            id=kept_id(folder, "wandb"),
            resume="allow",
            config=dataclasses.asdict(config),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )
        keep_id(folder, "wandb", self._run.id)
        # W&B's own count of steps only ascends: a validation is told after later steps, a resume repeats some.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand numbers to W&B's own process."""
        self._run.log({"step": step, **values})

    def tell(self, step: int, name: str, text: str) -> None:
        """Hand a text over, shown as it is."""
        import wandb

        self._run.log({"step": step, name: wandb.Html(f"<pre>{html.escape(text)}</pre>")})

    def finish(self) -> None:
        """Wait until W&B's process has sent or written all."""
        self._run.finish()
