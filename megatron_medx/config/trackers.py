"""What is wrong with the fields that name trackers, and with the machine that is to tell them."""

import importlib.util
import re
from collections.abc import Iterator

from megatron_medx.config.problems import Problem
from megatron_medx.config.run import RunConfig

PACKAGES = (
    ("log.tensorboard", "tensorboard", "log.tensorboard=false"),
    ("log.wandb_project", "wandb", "log.wandb_project="),
    ("log.mlflow_uri", "mlflow", "log.mlflow_uri="),
)
"""Field that asks for a tracker, the package that it needs, what does without it."""

INSTALL = {"mlflow": "mlflow-skinny"}
"""Package -> what to install for it, where that has another name."""

WANDB_REFUSES = r"[/\\#?%:]"
"""In the name of a project: https://docs.wandb.ai/ref/python/init, `project`."""


def tracker_problems(config: RunConfig) -> Iterator[Problem]:
    """Names that a tracker would refuse once the run has begun."""
    log = config.log
    if re.search(WANDB_REFUSES, log.wandb_project):
        yield Problem(
            f"log.wandb_project is {log.wandb_project!r}",
            r"a name without / \ # ? % : (an entity goes into WANDB_ENTITY)",
            "change log.wandb_project",
        )
    if log.mlflow_uri and not re.match(r"[a-z][a-z0-9+.-]*:", log.mlflow_uri):
        yield Problem(
            f"log.mlflow_uri is {log.mlflow_uri!r}",
            "a server as https://HOST, or a folder as file:PATH",
            f"set log.mlflow_uri=file:{log.mlflow_uri}",
        )
    if log.mlflow_uri and not log.mlflow_experiment:
        yield Problem(
            "log.mlflow_experiment is empty", "the name of an MLflow experiment", "set log.mlflow_experiment=NAME"
        )


def tracker_package_problems(config: RunConfig) -> Iterator[Problem]:
    """Trackers that are asked for and whose package this machine does not have."""
    for key, package, without in PACKAGES:
        value = getattr(config.log, key.removeprefix("log."))
        if value and importlib.util.find_spec(package) is None:
            told = f"{key}={str(value).lower() if isinstance(value, bool) else value}"
            yield Problem(
                f"{told}, and no package {package} here",
                f"the package {package}, for each rank that may be the last",
                f"pip install {INSTALL.get(package, package)}; or set {without}",
            )
