"""A page of samples as the model sees them: patches put back into pictures, text with the learned tokens marked.

Comes in: a RowDataset. Goes out: one PNG. What this page shows has been through the plan, the window, the scaling and
the chat template, so a wrong window or a wrong loss mask is seen before a run is paid for.
"""

import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from megatron_medx.data.inspection.unpack import IMAGE, Piece, unpack_row
from megatron_medx.data.rows import RowDataset

NUM_COLUMNS = 3

CARD_WIDTH_IN, CARD_HEIGHT_IN = 4.6, 3.45

INK, QUIET, PAPER, CARD, MARK = "#1f2933", "#7b8794", "#f3f5f7", "#ffffff", "#0b7a75"
"""Text, prompt text, page, card, learned text."""

DOTS_PER_IN = 120

CHAR_WIDTH_IN, LINE_HEIGHT_IN = 9 / DOTS_PER_IN, 0.168
"""A character is 9 whole dots wide: the font is hinted to whole dots, and runs of text must join up."""

CHARS_PER_LINE = int((CARD_WIDTH_IN - 0.56) / CHAR_WIDTH_IN)

PICTURE_HEIGHT_IN = 1.35

UNITS = re.compile(r"<\|\w+\|>|\[\d+ image tokens\]|[^\s<]+ ?|\s|<")
"""What is not broken at the end of a line: a special token, a word with the space behind it."""


@dataclass(slots=True)
class _Card:
    """One sample of the page."""

    sample_id: str
    pictures: list[Image.Image]
    num_tokens: int
    words: list[tuple[str, bool]]
    """Pieces of text and whether they are learned; a weight other than 1 stands in front: `[x0.5] `."""


def draw_preview(dataset: RowDataset, path: Path, num_samples: int = 12) -> None:
    """Draw the first samples of the run, with and without images in the order they will be trained on.

    Args:
        dataset: rows of a run.
        path: PNG to write; its folder is made.
        num_samples: samples on the page.
    """
    cards = _cards(dataset, num_samples)
    num_rows = -(-len(cards) // NUM_COLUMNS)
    width, height = NUM_COLUMNS * CARD_WIDTH_IN, num_rows * CARD_HEIGHT_IN + 0.9
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    figure.text(
        0.15 / width, 1 - 0.38 / height, "What the model sees", fontsize=17, weight="bold", color=INK, va="center"
    )
    note = f"first {len(cards)} samples in training order  ·  pictures rebuilt from patches  ·  colored text is learned"
    figure.text(0.15 / width, 1 - 0.68 / height, note, fontsize=10, color=QUIET, va="center")
    for index, card in enumerate(cards):
        row, column = divmod(index, NUM_COLUMNS)
        left = column / NUM_COLUMNS
        bottom = 1 - (0.9 + (row + 1) * CARD_HEIGHT_IN) / height
        _draw_card(figure, card, left, bottom, 1 / NUM_COLUMNS, CARD_HEIGHT_IN / height)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DOTS_PER_IN)


def _cards(dataset: RowDataset, num_samples: int) -> list[_Card]:
    cards: list[_Card] = []
    for j in range(dataset.plan.rows_per_epoch):
        if len(cards) >= num_samples:
            break
        for sample in unpack_row(dataset[j], dataset.encoder.tokenizer, dataset.encoder.patcher):
            cards.append(_Card(sample.sample_id, sample.pictures, sample.num_tokens, _words(sample.pieces)))
    return cards[:num_samples]


def _words(pieces: list[Piece]) -> list[tuple[str, bool]]:
    """Text of equal weight in one run, special tokens among it; an image is a run of its own."""
    words = []
    for (weight, is_image), run in groupby(pieces, key=lambda piece: (piece.weight, piece.kind == IMAGE)):
        mark = f"[x{weight:g}] " if weight not in (0, 1) and not is_image else ""
        words.append((mark + "".join(piece.text for piece in run), weight > 0))
    return words


def _draw_card(figure: Figure, card: _Card, left: float, bottom: float, width: float, height: float) -> None:
    axes = figure.add_axes((left, bottom, width, height))
    axes.set(xlim=(0, CARD_WIDTH_IN), ylim=(0, CARD_HEIGHT_IN))
    axes.axis("off")
    frame = (0.12, 0.1), CARD_WIDTH_IN - 0.24, CARD_HEIGHT_IN - 0.2
    axes.add_patch(
        FancyBboxPatch(*frame, boxstyle="round,pad=0,rounding_size=0.09", facecolor=CARD, edgecolor="#dde3e8")
    )
    top = CARD_HEIGHT_IN - 0.32
    axes.text(0.28, top, card.sample_id, fontsize=9.5, weight="bold", color=INK, va="center")
    sizes = "  ".join(f"{picture.width}x{picture.height} px" for picture in card.pictures) or "no image"
    count = f"{sizes}  ·  {card.num_tokens} tokens"
    axes.text(CARD_WIDTH_IN - 0.28, top, count, fontsize=8, color=QUIET, va="center", ha="right")
    text_top = top - 0.3
    if card.pictures:
        x, y = 0.28, top - 0.22 - PICTURE_HEIGHT_IN
        for picture in card.pictures:
            wide = min(PICTURE_HEIGHT_IN * picture.width / picture.height, 3.9 / len(card.pictures))
            tall = wide * picture.height / picture.width
            middle = y + PICTURE_HEIGHT_IN / 2
            # zorder: above the card
            axes.imshow(picture, extent=(x, x + wide, middle - tall / 2, middle + tall / 2), aspect="auto", zorder=2)
            x += wide + 0.14
        axes.set(xlim=(0, CARD_WIDTH_IN), ylim=(0, CARD_HEIGHT_IN))  # imshow moves them
        text_top = y - 0.22
    _draw_words(axes, card.words, text_top)


def _draw_words(axes: matplotlib.axes.Axes, words: list[tuple[str, bool]], top: float) -> None:
    """Write runs of text in a fixed-width face, learned ones in color, line by line; the rest is left out."""
    line = column = 0
    num_lines = int((top - 0.1) / LINE_HEIGHT_IN)
    for text, learned in words:
        for unit in UNITS.findall(text):
            if unit == "\n" or column + len(unit.rstrip()) > CHARS_PER_LINE:
                line, column = line + 1, 0
            if line >= num_lines:
                return
            if unit == "\n":
                continue
            axes.text(
                0.28 + column * CHAR_WIDTH_IN,
                top - line * LINE_HEIGHT_IN,
                unit.replace("$", r"\$"),
                family="monospace",
                fontsize=CHAR_WIDTH_IN * 72 / 0.602,  # DejaVu Sans Mono is 0.602 em wide
                color=MARK if learned else QUIET,
                weight="bold" if learned else "normal",
                va="baseline",
            )
            column += len(unit)
