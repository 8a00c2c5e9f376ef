"""What one H100 or H200 proves: Transformer Engine is right, FP8 loses nothing, and the speed beside `transformers`.

    python -m benchmarks.gpu [--sections specs,speed,fp8,switches,decode,plan] [--minutes M]

    specs      Transformer Engine's layers against plain torch ones within bf16's own error (specs.py)
    speed      2B and 4B shapes, cut in depth to fit, real images: tokens/s, MFU with the tower counted, profile, FP8;
               beside plain `transformers` on the same samples                  >= 45 % MFU, >= 1.3 x, FP8 >= 1.2 x bf16
    fp8        the precision gate of each recipe over 200 steps                                             gap < 0.5 %
    switches   packing, fused attention, fused cross entropy, ...: tokens/s with and without each
    decode     DALI on the GPU against Pillow on the CPU (decode.py)
    plan       step time that `medx plan` predicts against the measured one                                within 20 %

Every piece is a process of its own, and is written to OUT when it is done: started again, a run goes on behind them.
Pieces for which the minutes do not last are left out and said. How a session with a GPU goes: session.md.

Without a GPU it says so, builds and checks every configuration, tries the programs on a tiny network, and exits 0.
"""

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu import report
from benchmarks.gpu.report import Verdict
from benchmarks.gpu.sections import SECTIONS, SWITCHES, Bench
from benchmarks.gpu.shapes import FP8_RECIPES, FP8_SIZE, H100, H200, SIZES, Device, gate_run, speed_run
from megatron_medx.config.memory import worst_rank

PACKAGES = ("torch", "megatron-core", "transformer-engine", "transformers", "nvidia-dali-cuda130")


def check_configurations(devices: Sequence[Device] = (H100, H200)) -> list[str]:
    """Build and check every configuration for each device; a line of each: layers, estimated memory.

    Raises:
        ConfigError: one of them could not run.
    """
    lines, nowhere = [], Path("gpu-data")
    for device in devices:
        for size in SIZES:
            config = speed_run(size, nowhere, Path("gpu-run"), device=device)
            kinds = worst_rank(config)
            lines.append(
                f"{device.name}: {size}: {config.model.num_layers} of {SIZES[size]().num_layers} layers, "
                f"estimated {sum(kinds.values()) / 1e9:.1f} of {device.memory_bytes / 1e9:.1f} GB"
            )
        for recipe in FP8_RECIPES:
            speed_run(FP8_SIZE, nowhere, Path("gpu-run"), device=device, words=(f"precision.fp8={recipe}",))
            gate_run(nowhere, Path("gpu-run"), recipe)
        for _, words, _ in SWITCHES.values():
            speed_run(next(iter(SIZES)), nowhere, Path("gpu-run"), device=device, words=words)
    return lines


def try_without_gpu(sections: Sequence[str]) -> list[str]:
    """Run the programs of these sections on a tiny network here; what did not work, empty if all did.

    Left out: FP8, which needs the GPU, and decoding where DALI is not installed.
    """
    from benchmarks.gpu.data import write_source

    with tempfile.TemporaryDirectory(prefix="medx-") as scratch:
        source, work = Path(scratch) / "source", Path(scratch) / "work"
        write_source(source, num_samples=40)
        bench = Bench(source, work, work / "results.json", H100, time.monotonic() + 1800, tiny=True)
        for name in sections:
            if name == "fp8" or (name == "decode" and find_spec("nvidia.dali") is None):
                print(f"{name}: not tried here")
                continue
            SECTIONS[name](bench)
        return [
            f"{section}: {name}: {report.why_not(piece)}"
            for section, pieces in bench.results.items()
            for name, piece in pieces.items()
            if {"error", "left_out"} & piece.keys()
        ]


def found_device() -> Device | None:
    """The GPU that torch sees; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return Device(properties.name, properties.total_memory)


def package_versions() -> dict[str, str]:
    """Installed versions of what the figures hang on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def print_results(results: dict, device_name: str, found: Sequence[Verdict]) -> None:
    """Tables of everything that was measured, then the verdicts."""
    for name, of in results.get("specs", {}).get("compare", {}).get("quantities", {}).items():
        said = f"plain bf16 {of['torch']:.4f}, Transformer Engine {of['te']:.4f}, limit {of['limit']:.4f}"
        print(f"{name:20} from fp32: {said}")
    speed = results.get("speed", {})
    print("\n".join(report.speed_lines(speed, device_name)))
    for name, piece in speed.items():
        if name.startswith("profile"):
            print("\n".join(report.profile_lines(name, piece)))
    for recipe, piece in results.get("fp8", {}).items():
        print(f"gate {recipe}: {piece.get('why') or report.why_not(piece)}")
    words = {name: said for name, (said, _, _) in SWITCHES.items()}
    print("\n".join(report.switch_lines(results.get("switches", {}), words)))
    for way, rate in results.get("decode", {}).get("images", {}).get("images_per_s", {}).items():
        print(f"decoding, {way:10} {rate:8.1f} images/s")
    print("\n".join(["", *report.verdict_lines(found)]))


def measure(chosen: argparse.Namespace, device: Device) -> int:
    """Run the sections on the GPU, print tables, verdicts and the JSON line; 1 where a target is not reached."""
    report.peak(device.name)  # a GPU without one is refused before anything is measured
    facts = {"device": device.name, "versions": package_versions()}
    print(f"{device.name}, {device.memory_bytes / 1e9:.1f} GB; {facts['versions']}")
    print("\n".join(check_configurations([device])))
    known = json.loads(chosen.out.read_text()) if chosen.out.is_file() else {}
    bench = Bench(chosen.source, chosen.work, chosen.out, device, time.monotonic() + 60 * chosen.minutes, results=known)
    for name in chosen.sections:
        SECTIONS[name](bench)
    found = report.verdicts(bench.results, device.name, chosen.sections)
    print_results(bench.results, device.name, found)
    reached = all(verdict.reached for verdict in found)
    targets = {verdict.name: {"found": verdict.found, "reached": verdict.reached} for verdict in found}
    facts |= {"date": datetime.date.today().isoformat(), "sections": chosen.sections}
    print(json.dumps({"benchmark": "gpu", **facts, "targets": targets, "reached": reached}))
    return 0 if reached else 1


def check_alone(chosen: argparse.Namespace) -> int:
    """What is done without a GPU; 0 unless a configuration is refused or a program fails on its tiny network."""
    print("no GPU here: nothing is measured; configurations are checked")
    print("\n".join(check_configurations()))
    failures = [] if chosen.only_check else try_without_gpu(chosen.sections)
    print("\n".join(failures) or "all configurations can run")
    line = {"benchmark": "gpu", "device": None, "sections": chosen.sections, "failures": failures}
    print(json.dumps(line | {"tried": not chosen.only_check}))
    return 1 if failures else 0


def section_names(text: str) -> list[str]:
    """Names of sections between commas.

    Raises:
        argparse.ArgumentTypeError: there is no such section.
    """
    names = text.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every target of the chosen sections is reached, 1 when one is missed or was not measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--sections", type=section_names, default=list(SECTIONS), metavar="A,B,...")
    parser.add_argument("--minutes", type=float, default=60.0, help="no piece is begun that may outlast them")
    parser.add_argument("--source", type=Path, default=Path("gpu-source"), help="of data.py (default %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("gpu-work"), help="for all that runs write")
    parser.add_argument("--out", type=Path, default=Path("gpu-work/results.json"), help="results, after every piece")
    parser.add_argument("--only-check", action="store_true", help="without a GPU: configurations alone, no tiny runs")
    chosen = parser.parse_args(arguments)
    device = found_device()
    return check_alone(chosen) if device is None else measure(chosen, device)


if __name__ == "__main__":
    sys.exit(main())
