"""What a data folder holds, in numbers and as a picture; counted while its index is written."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

REPORT_FILE, PICTURE_FILE, DEIDENTIFICATION_FILE = "report.json", "report.png", "deidentification.json"

COUNTED_NOTES = ("modality", "source", "license", "language")

NUM_NAMED = 50
"""Values of a note that the report names; the others are counted together."""

TOKEN_EDGES = np.array([0, *(2**k for k in range(4, 21)), 2**31])
"""Edges of the histogram of text tokens: 0, 16, 32, ... 1,048,576 and above."""

SIDE_EDGES = np.array([0, *(2**k for k in range(5, 17)), 2**31])
"""Edges of the histogram of images' longer sides, px."""

IMAGE_EDGES = np.array([0, 1, 2, 3, 5, 9, 17, 33, 65, 129, 2**31])
"""Edges of the histogram of images a sample."""


MOST_BARS = 20
"""In one panel of the picture."""


class Report:
    """Counts of one data folder."""

    def __init__(self) -> None:
        self.num_samples = self.num_images = self.text_tokens = self.longest_tokens = self.image_tokens = 0
        self.rejects: Counter[str] = Counter()
        self._notes = {name: Counter() for name in COUNTED_NOTES}
        self._dropped: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._histograms = {
            "text_tokens": (TOKEN_EDGES, np.zeros(len(TOKEN_EDGES) - 1, dtype=np.int64)),
            "longer_side_px": (SIDE_EDGES, np.zeros(len(SIDE_EDGES) - 1, dtype=np.int64)),
            "images_a_sample": (IMAGE_EDGES, np.zeros(len(IMAGE_EDGES) - 1, dtype=np.int64)),
        }

    @property
    def num_rejected(self) -> int:
        """Samples of the source that are not in the folder."""
        return self.rejects.total()

    def add_rows(self, table: pa.Table) -> None:
        """Count rows of the index."""
        if not len(table):
            return
        tokens = table["text_tokens"].to_numpy()
        widths = pc.list_flatten(table["image_widths"]).to_numpy()
        heights = pc.list_flatten(table["image_heights"]).to_numpy()
        self.num_samples += len(table)
        self.num_images += len(widths)
        self.text_tokens += int(tokens.sum(dtype=np.int64))
        self.image_tokens += int(pc.list_flatten(table["image_tokens"]).to_numpy().sum(dtype=np.int64))
        self.longest_tokens = max(self.longest_tokens, int(tokens.max()))
        num_images = pc.list_value_length(table["image_widths"]).to_numpy()
        found = {"text_tokens": tokens, "longer_side_px": np.maximum(widths, heights), "images_a_sample": num_images}
        for name, (edges, counts) in self._histograms.items():
            counts += np.histogram(found[name], edges)[0]
        for name, counter in self._notes.items():
            for entry in pc.value_counts(table[name]).to_pylist():
                counter[entry["values"] or "not stated"] += entry["counts"]

    def add_rejects(self, rejects: list[dict]) -> None:
        """Count lines of rejects.jsonl."""
        self.rejects.update(reject["reason"] for reject in rejects)

    def add_notes(self, notes: dict) -> None:
        """Count what a task did to its samples: `sample_files.Notes` as a dict."""
        self._dropped.update(notes["dropped"])
        self._counts.update({name: value for name, value in notes.items() if name != "dropped"})

    def write(self, folder: Path, with_picture: bool) -> None:
        """Write report.json, deidentification.json and, if wanted, report.png."""
        report = {
            "samples": self.num_samples,
            "rejected": dict(sorted(self.rejects.items())),
            "text_tokens": {"sum": self.text_tokens, "longest": self.longest_tokens},
            "images": self.num_images,
            "image_tokens": self.image_tokens,
            "volumes_and_slides": self._counts["num_stacks"],
            "slices_and_tiles_left_out": self._counts["num_left_out"],
            "gaps_in_volumes": self._counts["num_gaps"],
            "localizers_left_out": self._counts["num_localizers"],
            **{name: _named(counter) for name, counter in self._notes.items()},
            "histograms": {
                name: {"edges": edges.tolist(), "counts": counts.tolist()}
                for name, (edges, counts) in self._histograms.items()
            },
        }
        _write_json(folder / REPORT_FILE, report)
        stripped = {"files": self._counts["num_stripped"], "dropped": dict(sorted(self._dropped.items()))}
        _write_json(folder / DEIDENTIFICATION_FILE, stripped)
        if with_picture:
            _draw(report, folder / PICTURE_FILE)


def summary(folder: Path) -> list[str]:
    """The report of a data folder as a few lines for a screen."""
    report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    stripped = json.loads((folder / DEIDENTIFICATION_FILE).read_text(encoding="utf-8"))
    tokens = report["text_tokens"]
    lines = [
        f"{folder}: {report['samples']:,} samples, {tokens['sum']:,} text tokens (longest {tokens['longest']:,}), "
        f"{report['images']:,} images of {report['image_tokens']:,} tokens"
    ]
    lines.append("  modality: " + ", ".join(f"{name} {count:,}" for name, count in report["modality"].items()))
    if report["volumes_and_slides"]:
        lines.append(
            f"  {report['volumes_and_slides']:,} volumes and slides; {report['slices_and_tiles_left_out']:,} of their "
            f"images left out, evenly; {report['gaps_in_volumes']:,} gaps where slices seem to be missing"
        )
    if stripped["files"]:
        lines.append(
            f"  {stripped['files']:,} DICOM and NIfTI files stripped of {len(stripped['dropped'])} kinds of fields: "
            f"{DEIDENTIFICATION_FILE}"
        )
    rejected = ", ".join(f"{reason} {count:,}" for reason, count in report["rejected"].items())
    return [*lines, f"  rejected: {rejected or 'none'}"]


def _named(counter: Counter[str]) -> dict[str, int]:
    named = dict(counter.most_common(NUM_NAMED))
    rest = counter.total() - sum(named.values())
    return named | ({f"{len(counter) - NUM_NAMED} others": rest} if rest else {})


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _draw(report: dict, path: Path) -> None:
    """Three histograms, modalities, sources and rejects, on one page."""
    from matplotlib.figure import Figure  # a second of imports that a build without a picture does not need

    figure = Figure(figsize=(15, 8), layout="constrained")
    samples, tokens, images = report["samples"], report["text_tokens"]["sum"], report["images"]
    of_images = f"{images:,} images of {report['image_tokens']:,} tokens"
    figure.suptitle(f"{samples:,} samples, {tokens:,} text tokens, {of_images}")
    bars = {
        "text tokens of a sample": _bins(report["histograms"]["text_tokens"]),
        "longer side of an image, px": _bins(report["histograms"]["longer_side_px"]),
        "images of a sample": _bins(report["histograms"]["images_a_sample"]),
        "samples by modality": report["modality"],
        "samples by source": report["source"],
        "rejects by reason": report["rejected"],
    }
    for axis, (title, counts) in zip(figure.subplots(2, 3).flatten(), bars.items(), strict=True):
        shown = list(counts.items())[:MOST_BARS]
        axis.barh([label[:40] for label, _ in shown], [count for _, count in shown], color="#3b6ea5")
        axis.set_title(title if shown else f"{title}: none")
        axis.invert_yaxis()
        if not shown:
            axis.set_axis_off()
    figure.savefig(path, dpi=80)


def _bins(histogram: dict) -> dict[str, int]:
    """Label and count of each bin, up to the last that holds something."""
    edges, counts = histogram["edges"], histogram["counts"]
    last = max((k for k, count in enumerate(counts) if count), default=-1)
    labels = [
        f"{low:,}" if high == low + 1 else f"{low:,} to {high - 1:,}" for low, high in pairwise(edges[: last + 2])
    ]
    if last == len(counts) - 1:
        labels[-1] = f"{edges[-2]:,} and more"
    return dict(zip(labels, counts[: last + 1], strict=True))
