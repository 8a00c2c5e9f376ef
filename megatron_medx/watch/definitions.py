"""The page that says what every number of `medx watch` is: name, unit, meaning, and what it is taken over."""

import textwrap

from rich.text import Text

from megatron_medx.run_folder.quantities import RANKS, STEP, Quantity
from megatron_medx.status.report import WINDOW_STEPS
from megatron_medx.watch.numbers import NUMBERS
from megatron_medx.watch.watched_run import PERCENTILE_STEPS

BESIDE_NUMBERS = (STEP["step"], STEP["step_time_s"], STEP["data_wait_s"], RANKS["busy_s"])
"""What heads and charts show, or definitions of others speak of."""

TAKEN_OVER = (
    f"Speed, data wait, MFU and mixture are of the last {WINDOW_STEPS} steps, percentiles of the last "
    f"{PERCENTILE_STEPS:,}; other numbers of a step are the newest, those of a validation of each set's last one."
)


def shown_quantities() -> list[Quantity]:
    """All that may be on screen, each once, the most important first."""
    return list(dict.fromkeys((*(number.quantity for number in NUMBERS), *BESIDE_NUMBERS)))


def definition_pages(width: int, height: int) -> list[list[Text]]:
    """Pages of definitions, each as high as the screen, with the keys in its last line.

    Args:
        width: characters.
        height: lines.
    """
    entries = [_entry(quantity, width) for quantity in shown_quantities()]
    entries.append([Text(line, style="dim") for line in textwrap.wrap(TAKEN_OVER, max(20, width))])
    pages: list[list[Text]] = [[]]
    for entry in entries:
        if pages[-1] and len(pages[-1]) + len(entry) > height - 1:
            pages.append([])
        pages[-1] += entry[: max(0, height - 1)]
    for number, page in enumerate(pages, start=1):
        page += [Text()] * (height - 1 - len(page))
        page.append(Text(f"definitions {number} of {len(pages)}   space next   d back   q quit", style="dim"))
    return pages


def _entry(quantity: Quantity, width: int) -> list[Text]:
    unit = f" ({quantity.unit})" if quantity.unit else ""
    meaning = textwrap.wrap(quantity.meaning, max(20, width - 2))
    return [Text(quantity.label + unit, style="bold"), *(Text(f"  {line}") for line in meaning)]
