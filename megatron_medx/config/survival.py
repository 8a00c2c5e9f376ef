"""What is wrong with the fields that say how a run survives: which checkpoints stay, when it counts as failing."""

from collections.abc import Iterator

from megatron_medx.config.problems import Problem
from megatron_medx.config.run import RunConfig


def survival_problems(config: RunConfig) -> Iterator[Problem]:
    """Fields that contradict one another, or would leave nothing to go back to."""
    checkpoint, survival = config.checkpoint, config.survival
    if checkpoint.keep_last == 1:
        yield Problem(
            "checkpoint.keep_last is 1",
            "0, which keeps all, or at least 2: where the newest is damaged, the one before is resumed from",
            "set checkpoint.keep_last=2",
        )
    if checkpoint.keep_every_steps and not checkpoint.keep_last:
        yield Problem(
            f"checkpoint.keep_every_steps {checkpoint.keep_every_steps}, checkpoint.keep_last 0, which keeps all",
            "checkpoints that would go, of which some are to stay",
            "set checkpoint.keep_last=2, or checkpoint.keep_every_steps=0",
        )
    if checkpoint.keep_every_steps % checkpoint.every_steps:
        yield Problem(
            f"checkpoint.keep_every_steps {checkpoint.keep_every_steps}, checkpoint.every_steps "
            f"{checkpoint.every_steps}",
            "a multiple: only what is saved can be kept",
            f"set checkpoint.keep_every_steps="
            f"{-(-checkpoint.keep_every_steps // checkpoint.every_steps) * checkpoint.every_steps}",
        )
    yield from _none_before_bad_steps(config)
    if survival.spike_factor and config.training.on_bad_loss != "rollback":
        yield Problem(
            f"survival.spike_factor {survival.spike_factor}, training.on_bad_loss={config.training.on_bad_loss}",
            "rollback, which ends: skip would leave every update out when losses have risen for good",
            "set training.on_bad_loss=rollback, or survival.spike_factor=0",
        )
    if 0 < survival.spike_factor <= 1:
        yield Problem(
            f"survival.spike_factor {survival.spike_factor}",
            "more than 1: every second step lies above the median",
            "set survival.spike_factor=2, or 0 to look at none",
        )


def _none_before_bad_steps(config: RunConfig) -> Iterator[Problem]:
    """Saves amid bad steps, which are not gone back to, must not push out all that are."""
    checkpoint, bad_steps = config.checkpoint, config.survival.bad_steps
    if config.training.on_bad_loss != "rollback" or not checkpoint.keep_last:
        return
    amid = -(-(bad_steps - 1) // checkpoint.every_steps)  # the last bad step is not saved
    if checkpoint.keep_last <= amid:
        yield Problem(
            f"survival.bad_steps {bad_steps}, checkpoint.every_steps {checkpoint.every_steps}, checkpoint.keep_last "
            f"{checkpoint.keep_last}",
            f"at least {amid + 1} checkpoints that stay: {amid} may be saved amid bad steps, and the run goes back "
            "behind these",
            f"set checkpoint.keep_last={amid + 1}",
        )
