"""A random network as stock `transformers` writes it, its import, runs that start from it, and their exports."""

import shutil
from concurrent.futures import Future
from pathlib import Path

import torch
import transformers
from grids import ONE, SCENARIOS, SMALL
from medx_runs import Run, Runs

from megatron_medx.checkpoint.convert import to_hf, to_megatron
from megatron_medx.checkpoint.hugging_face.hf_config import config_json
from megatron_medx.config.model import ModelConfig
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.recipes import get_recipe

THREE_STEPS = ("training.steps=3", "optimizer.warmup_tokens=1024", "checkpoint.every_steps=100")
"""One step of warm-up, which starts at rate 0: after step 1 the weights are still those that were imported."""

WITHOUT_OPTIMIZER = "megatron.no_save_optim=true"

EXPORTED = {
    ("dense", ONE): (),
    ("dense", "tp4"): (),
    ("dense", "dp4"): (WITHOUT_OPTIMIZER,),
    ("dense", "pp4"): (),
    ("dense", "pp2 vpp2"): (),
    ("dense", "pp3 first1 last1"): (WITHOUT_OPTIMIZER,),
    ("dense", "tp4 cp2"): (),
    ("dense", "cp2 dp2 pp2 first1"): (),
    ("dense", "tp2 pp2 vpp2 dp2 selective"): (),
    ("experts", "tp2 ep2"): (),
    ("experts", "dp4 ep4"): (WITHOUT_OPTIMIZER,),
    ("experts", "pp2 vpp2 dp2 ep2"): (),
    ("experts", "tp2 pp2 dp2 ep4"): (),
    ("experts", "tp2 cp2 dp2 ep8"): (WITHOUT_OPTIMIZER,),
}
"""(Scenario, grid) of runs after import that also save after step 1 -> with which words."""

FROM_EXPORT = {
    ("dense", "tp2 cp2 pp2"): "pp3 first1 last1",
    ("dense", "pp2"): "tp4",
    ("dense", "cp4"): "tp2 pp2 vpp2 dp2 selective",
    ("experts", "tp2"): "tp2 cp2 dp2 ep8",
    ("experts", "cp2 ep2"): "pp2 vpp2 dp2 ep2",
    ("experts", "tp2 cp2 pp2 ep2 full"): "dp4 ep4",
}
"""(Scenario, grid) of runs that start from what another grid's run was exported as -> that grid."""


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


def hf_folder(runs: Runs, name: str) -> Path:
    """Where a scenario's network lies in Hugging Face's format, once it is imported."""
    return runs.folder / f"hf {name}"


def imported(runs: Runs, name: str) -> Future:
    """Folder of a scenario's network, random in Hugging Face's format, converted to Megatron's."""

    def convert(runs: Runs) -> Path:
        hf = write_random_hf(scenario_model(name), runs.data / "processor", hf_folder(runs, name))
        run = runs.warm(["convert", "to-megatron", str(hf), str(runs.folder / f"imported {name}")], hf)
        run.ok()
        return runs.folder / f"imported {name}"

    return runs.once(f"import {name}", convert)


def after_import(runs: Runs, name: str, grid: str) -> Future:
    """Three steps on a grid from the imported network, or from what another grid's run made of it."""

    def train(runs: Runs) -> Run:
        start = imported(runs, name) if (name, grid) not in FROM_EXPORT else imported_again(runs, name, grid)
        words = [*SMALL, *SCENARIOS[name], *THREE_STEPS, f"checkpoint.start_from={start.result()}"]
        if (name, grid) in EXPORTED:
            words += ["checkpoint.every_steps=1", *EXPORTED[name, grid]]
        return runs.train(f"imported {name} on {grid}", *words, grid=grid)

    return runs.once(f"imported {name} on {grid}", train)


def exported(runs: Runs, name: str, grid: str) -> Future:
    """Hugging Face directory of the first checkpoint that a grid's run wrote after import."""

    def export(runs: Runs) -> Path:
        run, out = after_import(runs, name, grid).result().ok(), runs.folder / f"export {name} {grid}"
        to_hf(run.checkpoints / "iter_0000001", out)
        return out

    return runs.once(f"export {name} {grid}", export)


def imported_again(runs: Runs, name: str, grid: str) -> Future:
    """Checkpoint made of the export that a grid's run starts from."""

    def convert(runs: Runs) -> Path:
        out = runs.folder / f"imported again {name} {grid}"
        to_megatron(exported(runs, name, FROM_EXPORT[name, grid]).result(), out)
        return out

    return runs.once(f"import again {name} {grid}", convert)
