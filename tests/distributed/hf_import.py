"""A random network as stock `transformers` writes it, and its import."""

import shutil
from concurrent.futures import Future
from pathlib import Path

import torch
import transformers
from grids import SCENARIOS, SMALL
from medx_runs import Runs

from megatron_medx.checkpoint.hf_config import config_json
from megatron_medx.config.model import ModelConfig
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.recipes import get_recipe


def scenario_model(name: str) -> ModelConfig:
    """The network of a scenario."""
    return apply_overrides(get_recipe("demo"), [*SMALL, *SCENARIOS[name]]).model


def write_random_hf(model: ModelConfig, processor: Path, folder: Path) -> Path:
    """A Hugging Face directory in fp32; every parameter is perturbed, so no norm is 1 and no bias 0."""
    torch.manual_seed(3)
    settings = config_json(model, torch.float32, {})
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    network = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    shutil.copytree(processor, folder, dirs_exist_ok=True)
    return folder


def imported(runs: Runs, name: str) -> Future:
    """Folder of a scenario's network, random in Hugging Face's format, converted to Megatron's."""

    def convert(runs: Runs) -> Path:
        hf = write_random_hf(scenario_model(name), runs.data / "processor", runs.folder / f"hf {name}")
        run = runs.warm(["convert", "to-megatron", str(hf), str(runs.folder / f"imported {name}")], hf)
        run.ok()
        return runs.folder / f"imported {name}"

    return runs.once(f"import {name}", convert)
