"""The steps that `training.profile` names, and what is wrong with the fields that ask for recordings."""

import re
from collections.abc import Iterator

from megatron_medx.config.problems import Problem
from megatron_medx.config.run import RunConfig

MAX_PROFILED_STEPS = 20
"""The profiler holds all that it records in memory until the last step is done (docs/profiling.md has numbers)."""


def profiled_steps(config: RunConfig) -> tuple[int, int]:
    """First and last step that are profiled, of a run whose `training.profile` names some."""
    first, last = config.training.profile.split(":")
    return int(first), int(last)


def profiling_problems(config: RunConfig) -> Iterator[Problem]:
    """What is wrong with `training.profile`."""
    text, steps = config.training.profile, config.training.steps
    if not text:
        return
    if not re.fullmatch(r"\d+:\d+", text):
        yield Problem(
            f"training.profile {text!r}",
            "first and last step with a colon between them",
            f"set training.profile={min(10, steps)}:{min(12, steps)}",
        )
        return
    first, last = profiled_steps(config)
    if not 1 <= first <= last <= steps:
        yield Problem(
            f"training.profile {text}, training.steps {steps}",
            f"steps from 1 to {steps}, the first not behind the last",
            f"set training.profile={min(10, steps)}:{min(12, steps)}",
        )
    elif last - first >= MAX_PROFILED_STEPS:
        yield Problem(
            f"training.profile {text}, {last - first + 1} steps",
            f"at most {MAX_PROFILED_STEPS}: all that is recorded is held in memory until the last one is done",
            f"set training.profile={first}:{first + 2}",
        )


def gpu_recording_problems(config: RunConfig) -> Iterator[Problem]:
    """What of a GPU is to be recorded, where there is none."""
    for key, asked, what in (
        ("training.nvtx", config.training.nvtx, "CUDA, whose profiler (nsys) reads these names"),
        ("log.memory_history", config.log.memory_history, "CUDA, whose allocator keeps the history"),
    ):
        if asked:
            yield Problem(f"{key} is true, this rank has no CUDA device", what, f"set {key}=false")
