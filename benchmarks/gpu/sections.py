"""The sections of gpu.py: which pieces each measures, in which order, with which runs.

A piece is a process of its own; what became of it is written at once. gpu.py says what is proved and judges it.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.gpu import report, runs
from benchmarks.gpu.runs import Failed, Programs
from benchmarks.gpu.shapes import (
    FP8_RECIPES,
    FP8_SIZE,
    LAYER_STEP,
    SIZES,
    UNPACKED,
    Device,
    gate_run,
    speed_run,
)
from megatron_medx.config.memory import worst_rank
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import MedxError

NEEDED_S = {"specs": 60, "run": 80, "rival": 90, "profile": 90, "gate": 150, "decode": 40}
"""Seconds that a piece is expected to take: none is begun with less. Expected, not measured."""

RIVAL_BATCHES = (4, 8)
"""Samples of the rival's padded batches; the faster one counts."""

SWITCHES = {
    "as shipped": ("as shipped (packed, Transformer Engine, cuDNN attention)", (), ()),
    "unpacked": ("packing off: one sample a row", UNPACKED, ()),
    "torch layers": ("fused attention and layers off: plain torch, SDPA", (), ("torch_layers",)),
    "unfused attention": ("fused attention off: the engine's plain one", ("megatron.attention_backend=unfused",), ()),
    "fused loss": ("fused cross entropy (Megatron, native)", ("megatron.cross_entropy_loss_fusion=true",), ()),
    "accumulation": ("gradient accumulation within the products", (), ("gradient_accumulation_fusion",)),
    "fused rope": ("rotary by Transformer Engine's kernel", (), ("fused_rope",)),
}  # fmt: skip
"""Switch -> its words in the table, overrides of the run, changes of train.py."""

UNUSABLE = {
    "CUDA graphs": "a graph takes tensors of fixed shape alone; rows differ in samples, images and patches, and "
    "Megatron's layers refuse `packed_seq_params` in one (transformer_layer.py, _te_cuda_graph_replay)",
    "fused output layer and loss": "Megatron-Core 0.19.2 knows `native` and `te` (model_parallel_config.py), and its "
    "parser refuses `te` as unstable; none fuses the product with the loss",
}
"""Switches that this model has no use for, and why; read, not tried."""


@dataclass
class Bench:
    """What sections share: where they read and write, what is known, how long they may take."""

    source: Path
    work: Path
    out: Path
    device: Device
    deadline_s: float
    tiny: bool = False
    results: dict[str, dict[str, dict]] = field(default_factory=dict)

    def piece(self, section: str, name: str, needed_s: float, make: Callable[[Programs], dict]) -> dict:
        """Figures of a piece: known ones, or those of `make`; whatever becomes of it is saved.

        A piece that failed or was left out before is tried again.
        """
        pieces = self.results.setdefault(section, {})
        if name in pieces and not {"error", "left_out"} & pieces[name].keys():
            return pieces[name]
        left_s, began_s = self.deadline_s - time.monotonic(), time.monotonic()
        if left_s < needed_s:
            pieces[name] = {"left_out": f"{left_s:.0f} s were left of the minutes, {needed_s:.0f} may be needed"}
        else:
            try:
                pieces[name] = make(Programs(self.work, left_s))
            except (Failed, MedxError) as error:
                pieces[name] = {"error": str(error)}
            pieces[name]["took_s"] = round(time.monotonic() - began_s, 1)
        self.save()
        short = "done" if not {"error", "left_out"} & pieces[name].keys() else report.why_not(pieces[name])
        print(f"{section}: {name}: {short}", flush=True)
        return pieces[name]

    def save(self) -> None:
        """Write all results, whole or not at all."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        half = self.out.with_name(self.out.name + ".part")
        half.write_text(json.dumps(self.results, indent=1))
        os.replace(half, self.out)

    def data(self, programs: Programs) -> Path:
        """The data folder, built by the first piece that needs it."""
        return runs.data_folder(programs, self.source)

    def steps(self) -> tuple[int, int]:
        """Warm and counted steps of a measured run."""
        return (1, 2) if self.tiny else (runs.WARM_STEPS, runs.COUNTED_STEPS)


def run_specs(bench: Bench) -> None:
    """Transformer Engine's layers against plain torch ones."""
    bench.piece("specs", "compare", NEEDED_S["specs"], runs.specs)


def run_speed(bench: Bench) -> None:
    """Each shape in bf16 and beside `transformers`, then FP8: what targets need. Then what explains them."""
    sizes = list(SIZES)[:1] if bench.tiny else list(SIZES)
    for size in sizes:
        bench.piece("speed", size, NEEDED_S["run"], partial(measured, bench, size=size, name=size))
        name = f"{size} transformers"
        bench.piece("speed", name, NEEDED_S["rival"], partial(rival, bench, size=size, name=name, by_length=False))
    for recipe in () if bench.tiny else FP8_RECIPES:
        name, words = f"{FP8_SIZE} {recipe}", (f"precision.fp8={recipe}",)
        bench.piece("speed", name, NEEDED_S["run"], partial(measured, bench, size=FP8_SIZE, name=name, words=words))
    for size in sizes:
        bench.piece("speed", f"profile {size}", NEEDED_S["profile"], partial(profile, bench, size=size))
    for size in () if bench.tiny else sizes:
        name = f"{size} transformers by length"
        bench.piece("speed", name, NEEDED_S["rival"], partial(rival, bench, size=size, name=name, by_length=True))


def measured(
    bench: Bench,
    programs: Programs,
    size: str,
    name: str,
    words: tuple[str, ...] = (),
    changes: Sequence[str] = (),
) -> dict:
    """A measured run; where the GPU's memory does not last, with fewer layers, unless those of others bind it."""
    layers = known_layers(bench, size)
    while True:
        config = speed_config(bench, programs, size, name, words, layers)
        try:
            figures = runs.measured(programs, config, steps=bench.steps(), changes=changes)
            return figures | {"estimated_bytes": sum(worst_rank(config).values())}
        except Failed as error:
            fewer = config.model.num_layers - LAYER_STEP
            if "out of memory" not in str(error) or known_layers(bench, size) is not None or fewer < LAYER_STEP:
                raise
            layers = fewer


def known_layers(bench: Bench, size: str) -> int | None:
    """Decoder layers with which the shape was measured in bf16; None before."""
    return bench.results.get("speed", {}).get(size, {}).get("layers")


def speed_config(
    bench: Bench,
    programs: Programs,
    size: str,
    name: str,
    words: tuple[str, ...] = (),
    layers: int | None = None,
) -> RunConfig:
    """The configuration of a run in a folder of its own."""
    folder = programs.fresh(name.replace(" ", "-"))
    layers = layers or known_layers(bench, size)
    data = bench.data(programs)
    return speed_run(size, data, folder, device=bench.device, words=words, layers=layers, tiny=bench.tiny)


def rival(bench: Bench, programs: Programs, size: str, name: str, by_length: bool) -> dict:
    """`transformers` on the samples of the shape's run."""
    config = speed_config(bench, programs, size, name)
    batches, steps = ((4,), 3) if bench.tiny else (RIVAL_BATCHES, 6)
    return runs.rival(programs, config, batches=batches, steps=steps, by_length=by_length)


def profile(bench: Bench, programs: Programs, size: str) -> dict:
    """Seconds of one short step of the shape's run by part and kind."""
    return runs.profiled(programs, speed_config(bench, programs, size, f"profile-{size}"), bench.steps()[0])


def run_fp8(bench: Bench) -> None:
    """The precision gate of each recipe, and as many steps in it."""
    for recipe in FP8_RECIPES:
        bench.piece("fp8", recipe, NEEDED_S["gate"], partial(gate, bench, recipe=recipe))


def gate(bench: Bench, programs: Programs, recipe: str) -> dict:
    """`medx train` of a small network behind the gate."""
    config = gate_run(bench.data(programs), programs.fresh(f"gate-{recipe}"), recipe)
    return runs.gate(programs, config)


def run_switches(bench: Bench) -> None:
    """Each switch alone against the run as shipped, on the smallest shape; that one is taken over if it is known."""
    size, section = next(iter(SIZES)), bench.results.setdefault("switches", {})
    known = bench.results.get("speed", {}).get(size, {})
    if "tokens_per_s" in known:
        section.setdefault("as shipped", dict(known))
    chosen = ("as shipped",) if bench.tiny else SWITCHES
    for name in chosen:
        _, words, changes = SWITCHES[name]
        make = partial(measured, bench, size=size, name=f"switch {name}", words=words, changes=changes)
        bench.piece("switches", name, NEEDED_S["run"], make)
    for name, reason in UNUSABLE.items():
        section[name] = {"unusable": reason}


def run_decode(bench: Bench) -> None:
    """DALI on the GPU against Pillow and DALI on the CPU."""
    bench.piece("decode", "images", NEEDED_S["decode"], partial(runs.decode, tiny=bench.tiny))


def run_plan(bench: Bench) -> None:
    """Predicted against measured step time of every run of section speed that was measured."""
    for name, figures in bench.results.get("speed", {}).items():
        size, _, recipe = name.partition(" ")
        if size in SIZES and recipe in ("", *FP8_RECIPES) and "step_s" in figures:
            words = (f"precision.fp8={recipe}",) if recipe else ()
            bench.piece("plan", name, 5, partial(predicted, bench, size=size, words=words, figures=figures))


def predicted(bench: Bench, programs: Programs, size: str, words: tuple[str, ...], figures: dict) -> dict:
    """The planner's step time for a measured run, and its relative error."""
    config = speed_config(bench, programs, size, "plan", words, figures["layers"])
    predicted_s = runs.predicted_step_s(config, bench.device)
    return {"predicted_s": predicted_s, "relative_error": predicted_s / figures["step_s"] - 1}


SECTIONS = {
    "specs": run_specs,
    "speed": run_speed,
    "fp8": run_fp8,
    "switches": run_switches,
    "decode": run_decode,
    "plan": run_plan,
}
"""In the order in which they are run: what a lease proves first, if it ends early."""
