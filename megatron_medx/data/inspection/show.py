"""Rows as a web page: every sample's text, what of it is learned, its images as the model sees them, its positions.

Comes in: a RunConfig and row numbers. Goes out: one HTML file that asks for nothing else. It shows what training gets,
taken from the finished row, so that a wrong window, a wrong mask or a wrong border is seen before a run is paid for.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import jinja2
import torch
from PIL import Image

from megatron_medx.config.run import RunConfig
from megatron_medx.data.inspection.unpack import IMAGE, SPECIAL, Piece, RowSample, unpack_row
from megatron_medx.data.microbatch import Microbatch
from megatron_medx.data.rows import RowDataset, build_row_dataset, row_lengths
from megatron_medx.errors import DataError

TEMPLATE_FILE = Path(__file__).with_name("show.html.jinja")

PADDING = "padding"


def parse_packs(text: str) -> range:
    """`3` -> row 3, `3:6` -> rows 3, 4 and 5.

    Raises:
        DataError: it is neither, or names no row.
    """
    first, colon, end = text.partition(":")
    numbers = [first, end] if colon else [first]
    rows = range(0)
    if all(number.isascii() and number.isdigit() for number in numbers):
        rows = range(int(first), int(end) if colon else int(first) + 1)
    if not rows:
        raise DataError(f"--pack {text}", "a row number from 0 on, or A:B with A < B", "write for instance --pack 0:3")
    return rows


def write_page(config: RunConfig, rows: range, path: Path) -> None:
    """Write the page of some rows of a run.

    Args:
        config: of the run; its grid is read for the padding that it asks for.
        rows: row numbers of the whole run, over all ranks.
        path: HTML file to write; its folder is made.
    """
    dataset = build_row_dataset(config, **row_lengths(config))
    page = render_page(dataset, rows, config.data.seq_len_tokens, config.data.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def render_page(dataset: RowDataset, rows: range, capacity_tokens: int, source: str) -> str:
    """The page as text.

    Args:
        dataset: makes the rows.
        rows: at least one.
        capacity_tokens: most tokens of a row.
        source: what is said to be shown.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE_FILE.read_text(encoding="utf-8"))
    views = [_row_view(dataset, row, capacity_tokens) for row in rows]
    return template.render(source=source, rows=views)


@dataclass(slots=True)
class _Bar:
    """A stretch of a row, to scale."""

    kind: str
    start: int
    num_tokens: int
    note: str
    """Shown under the pointer."""


def _row_view(dataset: RowDataset, row: int, capacity_tokens: int) -> dict:
    """What the template says about a row."""
    batch = dataset[row]
    patcher = dataset.encoder.patcher
    samples = unpack_row(batch, dataset.encoder.tokenizer, patcher)
    length = batch.tokens_1S.shape[1]
    used = sum(batch.sample_tokens)
    learned = int((batch.loss_weights_1S > 0).sum())
    facts = [
        ("tokens", f"{used:,} of {capacity_tokens:,}", f"{used / capacity_tokens:.1%}"),
        ("padding", f"{length - used:,}", f"row is {length:,} long"),
        ("learned", f"{learned:,}", f"{learned / max(used, 1):.1%} of tokens"),
        ("samples", f"{len(samples):,}", ""),
        ("images", f"{len(batch.grids_I3):,}", f"{len(batch.vision_index_M):,} tokens"),
        ("patches", f"{len(batch.pixels_PC):,}", f"{patcher.processor.patch_size} px a side"),
        ("estimated cost", f"{dataset.cost(row) / 1e12:.3g} TFLOP", "forward and backward"),
    ]
    return {
        "number": row,
        "length": length,
        "facts": facts,
        "segments": _segment_bars(batch, samples),
        "kinds": [bar for sample in samples for bar in _kind_bars(sample)],
        "samples": [_sample_view(sample, batch, patcher.merge_size) for sample in samples],
        "cu_seqlens": batch.cu_seqlens.tolist(),
    }


def _segment_bars(batch: Microbatch, samples: list[RowSample]) -> list[_Bar]:
    """Samples and what is padded behind each; the rest of the row."""
    borders = [*(sample.start for sample in samples), batch.tokens_1S.shape[1]]
    bars = []
    for number, (sample, end) in enumerate(zip(samples, borders[1:], strict=True)):
        note = f"{sample.sample_id}: {sample.num_tokens:,} tokens from {sample.start:,}"
        bars.append(_Bar(f"sample{number % 2}", sample.start, sample.num_tokens, note))
        if padding := end - sample.start - sample.num_tokens:
            bars.append(_Bar(PADDING, end - padding, padding, f"{padding:,} tokens of padding"))
    return bars


def _kind_bars(sample: RowSample) -> list[_Bar]:
    bars = []
    for piece in sample.pieces:
        kind = IMAGE if piece.kind == IMAGE else "learned" if piece.weight > 0 else "read"
        bars.append(_Bar(kind, piece.start, piece.num_tokens, f"{piece.num_tokens:,} tokens: {kind}"))
    return bars


def _sample_view(sample: RowSample, batch: Microbatch, merge_size: int) -> dict:
    """What the template says about a sample."""
    return {
        "id": sample.sample_id,
        "start": sample.start,
        "num_tokens": sample.num_tokens,
        "num_learned": sum(piece.num_tokens for piece in sample.pieces if piece.weight > 0),
        "pictures": [
            {"data": _data_uri(picture), "width": picture.width, "height": picture.height, "num_tokens": num_tokens}
            for picture, num_tokens in zip(
                sample.pictures, [piece.num_tokens for piece in sample.pieces if piece.kind == IMAGE], strict=True
            )
        ],
        "pieces": [
            {"classes": _classes(piece), "text": piece.text, "mark": _mark(piece, before)}
            for before, piece in zip([None, *sample.pieces], sample.pieces, strict=False)
        ],
        "positions": _positions(sample, batch.positions_3S),
    }


def _classes(piece: Piece) -> str:
    """How a piece is shown: `learned` exactly where its weight is not 0."""
    return " ".join(
        [*(["learned"] if piece.weight != 0 else []), *([piece.kind] if piece.kind in (SPECIAL, IMAGE) else [])]
    )


def _mark(piece: Piece, before: Piece | None) -> str:
    """The weight of a learned piece, where it is not 1 and not said already."""
    is_said = before is not None and before.weight == piece.weight
    return "" if is_said or piece.weight in (0, 1) else f"x{piece.weight:g}"


def _positions(sample: RowSample, positions_3S: torch.Tensor) -> list[dict]:
    """First and last position on each axis for every stretch of text and every image of a sample."""
    stretches: list[list] = []
    for piece in sample.pieces:
        kind = "image" if piece.kind == IMAGE else "text"
        if kind == "text" and stretches and stretches[-1][0] == "text":
            stretches[-1][2] += piece.num_tokens
        else:
            stretches.append([kind, piece.start, piece.num_tokens])
    return [
        {
            "kind": kind,
            "start": start,
            "end": start + num_tokens - 1,
            "axes": [
                f"{int(low)} to {int(high)}"
                for low, high in zip(*positions_3S[:, start : start + num_tokens].aminmax(dim=1), strict=True)
            ],
        }
        for kind, start, num_tokens in stretches
    ]


def _data_uri(picture: Image.Image) -> str:
    """The picture as PNG within an address."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
