"""The page of a run as text: figures and tables of the sections, put into the templates beside this file.

Comes in: RunRecords. Goes out: HTML that asks for nothing else; run data may hold any text, all of it is escaped.
"""

from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from megatron_medx.report import data_report, happened, samples, settings, timings, validated
from megatron_medx.report.curves import Figures, bokeh_script
from megatron_medx.report.definitions import all_definitions, definition
from megatron_medx.report.glance import glance
from megatron_medx.report.panels import Panel, mixture_panel, step_panels, validation_panels
from megatron_medx.report.record import RunRecord

SECTIONS = {
    "curves": "Curves",
    "validation": "Validation",
    "timings": "Where the time went",
    "ranks": "Ranks",
    "history": "What happened",
    "settings": "Configuration",
    "data": "Data",
    "samples": "Samples",
    "machine": "Hardware and versions",
    "definitions": "Definitions",
}
"""Id of a section -> its title, in the order of the page."""


def render_page(run: RunRecord, parent: RunRecord | None, now_s: float) -> str:
    """The whole page.

    Args:
        run: whose page it is.
        parent: whose curves and settings stand beside it, if any.
        now_s: seconds since 1970: when the page was made.
    """
    figures = Figures(run.last_step)
    content = {
        "sections": SECTIONS,
        "glance": glance(run, now_s),
        "parent": parent.name if parent else None,
        "is_beyond": parent is not None and parent.last_step > run.last_step,
        **_curves(run, parent, figures),
        **_ranks(run, figures),
        "times": timings.time_table(run),
        "profiles": run.profiles,
        **_history(run, figures),
        "difference": settings.difference_table(run, parent),
        "settings": settings.all_settings(run.config),
        **_data(run, figures),
        "samples": samples.answered_samples(run),
        "pictures": samples.pictures(run),
        "machine": settings.machine_rows(run),
        "definitions": all_definitions(),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = {"figures": Markup(figures.json()), "bokeh": Markup(bokeh_script())}
    return environment.get_template("page.html.jinja").render(content | scripts)


def _curves(run: RunRecord, parent: RunRecord | None, figures: Figures) -> dict:
    panels, absent = step_panels(run, parent)
    marks = happened.restarts(run)
    return {
        "curves": [_drawn(panel, figures, marks if panel.name == "loss" else []) for panel in panels],
        "absent": absent,
        "marks": marks,
        "sets": validated.set_table(run),
        "set_curves": [_drawn(panel, figures) for panel in validation_panels(run, parent)],
        "by_name": list(filter(None, (validated.named_table(run, key) for key in ("by_modality", "by_source")))),
    }


def _drawn(panel: Panel, figures: Figures, marks: list[int] | None = None) -> dict:
    """What the template needs of a panel."""
    element = figures.add_panel(panel, marks or [])
    return {"element": element, "title": panel.title, "unit": panel.unit, "definitions": panel.definitions}


def _ranks(run: RunRecord, figures: Figures) -> dict:
    lateness, element = timings.rank_lateness(run), None
    if lateness is not None and not np.isnan(lateness).all():
        steps = run.ranks.steps
        element = figures.add_heat_map("ranks", lateness, steps[0], steps[-1], "% later than the median")
    what = definition("derived.rank_lateness")
    return {"lateness": element, "what_lateness": what, "ranks": timings.rank_table(run)}


def _history(run: RunRecord, figures: Figures) -> dict:
    found = happened.timeline(run)
    return {
        "story": happened.story(run),
        "timeline": figures.add_timeline(*found) if found else None,
        "events": happened.event_table(run),
        "bad_steps": happened.bad_step_table(run),
    }


def _data(run: RunRecord, figures: Figures) -> dict:
    panel = mixture_panel(run)
    return {
        "mixture": data_report.mixture_table(run),
        "mixture_curve": _drawn(panel, figures) if panel else None,
        "plan": data_report.plan_table(run),
        "folders": data_report.data_folders(run),
        "rejects": run.rejects[-20:],
        "num_rejects": run.status["rejects"],
    }
