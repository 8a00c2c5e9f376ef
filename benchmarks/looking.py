"""What looking at a long run costs: `medx watch --once` and `medx report` of 100,000 steps on 64 ranks.

    python -m benchmarks.looking [--rounds N]

Rival: reading the same lines with Python's own `json` into dicts and nothing else, which is how `medx status` reads the
end of them. Each program is a fresh process, imports included, from start to end, in every round one after the other;
times are medians. The files are in the page cache, for the run was just made (long_run.py).

Targets: the first screen within 2 s of wall time, both programs within 300 MB of memory, a page below 5 MB that asks
for nothing from outside. What a page asks for is counted in a browser by tests/browser; here its text is searched for
addresses that a browser would fetch. A report may take REPORT_SECONDS.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.long_run import NUM_RANKS, NUM_STEPS, make_run
from benchmarks.measured_child import run_child
from megatron_medx.run_folder.names import REPORT_FILE

SCREEN_SECONDS, REPORT_SECONDS = 2.0, 10.0
MOST_BYTES, MOST_PAGE_BYTES = 300e6, 5e6
"""Targets."""

FETCHED = re.compile(
    r"""<(?:script|img|iframe|link|source)\b[^>]*\b(?:src|href)\s*=\s*["']?(?:https?:)?//""", re.IGNORECASE
)
"""What a browser loads by itself; links that a person may follow are none of it."""


def measure(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of seconds and largest peaks by program.

    Args:
        folder: of the run.
        rounds: each program runs so often.
    """
    programs = {
        "watch": ("megatron_medx.cli", "watch", folder, "--once"),
        "report": ("megatron_medx.cli", "report", folder),
        "json": ("benchmarks.looking", "--read", folder),
    }
    found: dict[str, list[dict]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, (module, *words) in programs.items():
            with tempfile.TemporaryFile() as said:
                found[name].append(run_child(module, *words, stdout=said)[0])
    return {
        name: {
            "seconds": statistics.median(one["seconds"] for one in measured),
            "cpu_seconds": statistics.median(one["cpu_seconds"] for one in measured),
            "peak_bytes": max(one["peak_bytes"] for one in measured),
        }
        for name, measured in found.items()
    }


def read_lines(folder: Path) -> int:
    """The rival: every line of the run's files as a dict; returns how many there are."""
    return sum(len([json.loads(line) for line in path.open()]) for path in sorted(folder.glob("*.jsonl")))


def verdict(found: dict[str, dict[str, float]], page: str) -> dict[str, object]:
    """Figures beside their targets, the ratio to the rival, and which targets were missed."""
    page_bytes, external = len(page.encode()), len(FETCHED.findall(page))
    checks = {
        "first screen, s": (found["watch"]["seconds"], SCREEN_SECONDS),
        "memory of watch, bytes": (found["watch"]["peak_bytes"], MOST_BYTES),
        "report, s": (found["report"]["seconds"], REPORT_SECONDS),
        "memory of report, bytes": (found["report"]["peak_bytes"], MOST_BYTES),
        "page, bytes": (page_bytes, MOST_PAGE_BYTES),
        "external addresses in it": (external, 0),
    }
    return {
        **found,
        "page_bytes": page_bytes,
        "external": external,
        "watch_of_rival": found["watch"]["seconds"] / found["json"]["seconds"],
        "missed": [name for name, (figure, target) in checks.items() if figure > target],
    }


def table(found: dict[str, object]) -> list[str]:
    """Lines for a person."""
    targets = {"watch": SCREEN_SECONDS, "report": REPORT_SECONDS}
    lines = [f"{'':<28}{'wall':>9}{'processor':>11}{'peak':>9}  target"]
    names = {"watch": "medx watch --once", "report": "medx report", "json": "json into dicts (rival)"}
    for key, name in names.items():
        one, target = found[key], targets.get(key)
        figures = f"{one['seconds']:>7.2f} s{one['cpu_seconds']:>9.2f} s{one['peak_bytes'] / 1e6:>6.0f} MB"
        lines.append(f"{name:<28}{figures}" + (f"  {target:g} s, {MOST_BYTES / 1e6:.0f} MB" if target else ""))
    lines.append(f"watch takes {found['watch_of_rival']:.2f} of the rival's time")
    lines.append(
        f"page: {found['page_bytes'] / 1e6:.2f} MB (target {MOST_PAGE_BYTES / 1e6:g}), {found['external']} external"
    )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Make the run, measure, say; 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="looking", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of all programs (default 5)")
    parser.add_argument("--read", type=Path, metavar="RUN", help="only be the rival, in its own process")
    args = parser.parse_args(argv)
    if args.read:
        print(read_lines(args.read))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        make_run(folder, NUM_STEPS, NUM_RANKS)
        found = measure(folder, args.rounds)
        page = (folder / REPORT_FILE).read_text(encoding="utf-8")
    result = verdict(found, page)
    print("\n".join(table(result)))
    print(json.dumps(result))
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
