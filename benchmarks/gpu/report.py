"""From what was measured on a GPU to figures, verdicts, tables and the exit code; pure arithmetic.

Results are a dictionary section -> piece -> figures, as gpu.py writes it after every piece; a piece that failed has
`error`, one that was left out for want of time `left_out`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gpu.shapes import FP8_RECIPES, FP8_SIZE, ROWS_PER_STEP, SIZES
from megatron_medx.errors import ConfigError
from megatron_medx.planner.hardware import PEAK_BF16_FLOPS, peak_bf16_flops
from megatron_medx.training.profiling.vocabulary import OPTIMIZER

MFU_TARGET = 0.45

DECODER_SHARE = 2 / 3
"""Of a step's model FLOPs that decoder and output layer have, from which on it counts as decoder-bound."""

FP8_TARGET, GAP_TARGET, RIVAL_TARGET, PLAN_TARGET = 1.2, 0.005, 1.3, 0.2
"""Least FP8 over bf16; largest gap of the gate; least ratio to `transformers`; largest error of a prediction."""

Results = Mapping[str, Mapping[str, Mapping]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what became of it."""

    name: str
    target: str
    found: float | None
    """None where it was not measured."""
    reached: bool
    section: str


def peak(device_name: str) -> float:
    """Dense bf16 peak of a GPU, FLOP/s.

    Raises:
        ConfigError: a GPU whose peak is not stated, so that it has no MFU.
    """
    if (flops := peak_bf16_flops(device_name)) is not None:
        return flops
    known = ", ".join(PEAK_BF16_FLOPS)
    raise ConfigError(
        f"no peak stated for {device_name}", f"one of {known}", "add it to PEAK_BF16_FLOPS, with its source"
    )


def mfu(figures: Mapping, device_name: str) -> float:
    """Model FLOPs over the bf16 peak, the tower's counted; in FP8 over the bf16 peak too, so that runs compare.

    Example: 445 model TFLOP/s on an H100 are 0.45.
    """
    return figures["model_tflops_per_s"] * 1e12 / peak(device_name)


def ratio(ours: Mapping | None, theirs: Mapping | None) -> float | None:
    """Tokens a second over tokens a second; None where one was not measured."""
    if not _is_measured(ours) or not _is_measured(theirs):
        return None
    return ours["tokens_per_s"] / theirs["tokens_per_s"]


def _is_measured(figures: Mapping | None) -> bool:
    return figures is not None and "tokens_per_s" in figures


def verdicts(results: Results, device_name: str, sections: Sequence[str]) -> list[Verdict]:
    """Every target of these sections."""
    judges = {"specs": _specs, "fp8": _gate, "speed": _speed, "plan": _plan}
    return [
        Verdict(name, target, found, found is not None and reached, section)
        for section in sections
        if section in judges
        for name, target, found, reached in judges[section](results, device_name)
    ]


Judged = Iterator[tuple[str, str, float | None, bool]]


def _specs(results: Results, device_name: str) -> Judged:
    piece = results.get("specs", {}).get("compare", {})
    quantities = piece.get("quantities", {}) if piece.get("transformer_engine") else {}
    worst = max((of["te"] / of["limit"] for of in quantities.values()), default=None)
    within = bool(quantities) and all(of["within"] for of in quantities.values())
    yield "Transformer Engine against torch, worst distance over its limit", "<= 1", worst, within


def _gate(results: Results, device_name: str) -> Judged:
    for recipe in FP8_RECIPES:
        gap = results.get("fp8", {}).get(recipe, {}).get("gap")
        yield f"FP8 gate, {recipe}", f"< {GAP_TARGET:.1%}", gap, gap is not None and gap < GAP_TARGET


def _speed(results: Results, device_name: str) -> Judged:
    speed = results.get("speed", {})
    for size in SIZES:
        ours, theirs = speed.get(size), speed.get(f"{size} transformers", {}).get("best")
        found = mfu(ours, device_name) if _is_measured(ours) else None
        if theirs is None or theirs["decoder_share"] >= DECODER_SHARE:  # the same samples as ours
            yield f"MFU, {size} bf16", f">= {MFU_TARGET:.0%}", found, found is not None and found >= MFU_TARGET
        over = ratio(ours, theirs)
        yield f"{size} bf16 over transformers", f">= {RIVAL_TARGET} x", over, over is not None and over >= RIVAL_TARGET
    gains = [ratio(speed.get(f"{FP8_SIZE} {recipe}"), speed.get(FP8_SIZE)) for recipe in FP8_RECIPES]
    best = max((gain for gain in gains if gain is not None), default=None)
    yield f"{FP8_SIZE} FP8 over bf16", f">= {FP8_TARGET} x", best, best is not None and best >= FP8_TARGET


def _plan(results: Results, device_name: str) -> Judged:
    for name, piece in results.get("plan", {}).items():
        error = piece.get("relative_error")
        yield (
            f"predicted step time, {name}",
            f"within {PLAN_TARGET:.0%}",
            error,
            (error is not None and abs(error) <= PLAN_TARGET),
        )
    if not results.get("plan"):
        yield "predicted step time", f"within {PLAN_TARGET:.0%}", None, False


def verdict_lines(found: Sequence[Verdict]) -> list[str]:
    """One line a target."""
    lines = []
    for verdict in found:
        value = "not measured" if verdict.found is None else f"{verdict.found:.4g}"
        word = "reached" if verdict.reached else "MISSED" if verdict.found is not None else "OPEN"
        lines.append(f"{verdict.name:62} {value:>12}   target {verdict.target:10} {word}")
    return lines


def speed_lines(speed: Mapping[str, Mapping], device_name: str) -> list[str]:
    """The table of runs: tokens/s, TFLOP/s, MFU, peak memory; the rival's best batch size in the same units."""
    widths = {
        "layers": 7,
        "tokens/s": 11,
        "TFLOP/s": 9,
        "MFU": 8,
        "step s": 8,
        "peak GB": 9,
        "estimate": 10,
        "waits": 8,
    }
    lines = [f"{'run':24}" + "".join(f"{title:>{width}}" for title, width in widths.items())]
    for name, piece in speed.items():
        if name.startswith("profile"):
            continue
        figures = piece.get("best", piece)
        if not _is_measured(figures):
            lines.append(f"{name:24} {why_not(piece)}")
            continue
        columns = [
            f"{figures.get('layers', ''):>7}",
            f"{figures['tokens_per_s']:11,.0f}",
            f"{figures['model_tflops_per_s']:9.0f}",
            f"{mfu(figures, device_name):8.1%}",
            f"{figures['step_s']:8.2f}",
            f"{figures['peak_bytes'] / 1e9:9.1f}" if "peak_bytes" in figures else f"{'':9}",
            f"{figures['estimated_bytes'] / 1e9:10.1f}" if "estimated_bytes" in figures else f"{'':10}",
            f"{figures['data_wait_share']:8.1%}" if "data_wait_share" in figures else "",
        ]
        lines.append(f"{name:24}" + "".join(columns))
    return lines


def why_not(piece: Mapping) -> str:
    """Why a piece has no figures, in a line."""
    return f"left out: {piece['left_out']}" if "left_out" in piece else f"failed: {piece.get('error', '')[-200:]!r}"


def profile_lines(name: str, piece: Mapping) -> list[str]:
    """Where the GPU's time of a step of ROWS_PER_STEP rows goes, by part and by kind, from a profiled shorter one."""
    if "by_part" not in piece:
        return [f"{name}: {why_not(piece)}"]
    idle_s = max(0.0, piece["profiled_step_s"] - piece["busy_s"])
    lines = [
        f"{name}: a step of {piece['rows']} rows took {piece['profiled_step_s']:.3f} s under the profiler, "
        f"{idle_s:.3f} s of it without a kernel, {piece['data_wait_s']:.3f} s waiting for rows"
    ]
    by_part = scaled(piece["by_part"], piece["rows"], ROWS_PER_STEP)
    by_kind: dict[str, float] = {}
    for part, kinds in piece["by_part_and_kind"].items():
        for kind, seconds in scaled_kinds(part, kinds, piece["rows"]).items():
            by_kind[kind] = by_kind.get(kind, 0.0) + seconds
    for title, shares in (("part", by_part), ("kind", by_kind)):
        total = sum(shares.values()) or 1.0
        ordered = sorted(shares.items(), key=lambda item: -item[1])
        lines.append(f"  by {title}: " + ", ".join(f"{key} {seconds / total:.1%}" for key, seconds in ordered))
    return lines


def scaled(by_part: Mapping[str, float], profiled_rows: int, rows: int) -> dict[str, float]:
    """Seconds of a step of `rows` rows, from a profiled one of fewer: all but the optimizer grows with them.

    Example: 2 rows with a decoder of 0.2 and an optimizer of 0.05 give, for 16, 1.6 and 0.05.
    """
    return {part: seconds if part == OPTIMIZER else seconds * rows / profiled_rows for part, seconds in by_part.items()}


def scaled_kinds(part: str, kinds: Mapping[str, float], rows: int) -> dict[str, float]:
    """Seconds of a part's kinds in a step of ROWS_PER_STEP rows; the optimizer's stay as they are."""
    factor = 1 if part == OPTIMIZER else ROWS_PER_STEP / rows
    return {kind: seconds * factor for kind, seconds in kinds.items()}


def switch_lines(switches: Mapping[str, Mapping], words: Mapping[str, str]) -> list[str]:
    """The table of switches: tokens/s, their ratio to those as shipped, last loss (packing alone changes it)."""
    base = switches.get("as shipped")
    lines = [f"{'switch':58}{'tokens/s':>11}{'of as shipped':>15}{'loss':>10}"] if switches else []
    for name, piece in switches.items():
        said = words.get(name, name)
        if "unusable" in piece:
            lines.append(f"{said:58} cannot be used: {piece['unusable']}")
        elif not _is_measured(piece):
            lines.append(f"{said:58} {why_not(piece)}")
        else:
            over = ratio(piece, base)
            gain = f"{over:13.2f} x" if over else ""
            lines.append(f"{said:58}{piece['tokens_per_s']:11,.0f}{gain:>15}{piece['last_loss']:10.4f}")
    return lines
