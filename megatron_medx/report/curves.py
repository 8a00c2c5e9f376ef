"""Panels as Bokeh figures: zoomed together along the steps, each point told under the pointer, legends that hide.

Comes in: Panels (panels.py). Goes out: what the page carries of them: Bokeh's script, one JSON text with all figures,
and their elements' ids. Colors of axes and grids are CSS variables of page.css, so that they follow light and dark.
"""

import json
from collections.abc import Iterable

import numpy as np
from bokeh.document import Document
from bokeh.models import (
    ColorBar,
    ColumnDataSource,
    DataRange1d,
    HoverTool,
    Legend,
    LegendItem,
    LinearColorMapper,
    NumeralTickFormatter,
    Range1d,
    Span,
)
from bokeh.models.formatters import BasicTickFormatter
from bokeh.palettes import Viridis256
from bokeh.plotting import figure
from bokeh.resources import Resources

from megatron_medx.report.panels import Curve, Panel
from megatron_medx.status.thinning import thin

COLORS = ("#2f7ed8", "#e0762f", "#239b74", "#c2508f", "#8a6fd1", "#a08b00", "#2c9fb3", "#d0504d", "#7c8894", "#9a6a3a")
"""Of curves, by number; all can be told apart from white and from near black."""

QUIET = "#7f8b98"
"""Of words in legends, which know no CSS variables: to be read on white and on near black."""

MAX_POINTS = 2_400
"""Of a curve: two for each pixel that it is wide on a large screen."""

HEIGHT_PX = 240
"""Of a figure without its legend."""

LEGEND_COLUMNS, LEGEND_ROW_PX = 2, 21

MAX_LABEL = 28
"""Characters of a name in a legend; two have room beside each other on a phone."""

MAX_MARKED = 40
"""Measurements of a curve that are marked one by one."""

TOOLS = "xpan,box_zoom,xwheel_zoom,reset,save"


class Figures:
    """The figures of a page, by the id of the element that each is drawn in."""

    def __init__(self, last_step: int):
        self._steps = Range1d(0, max(1, last_step))
        """Of the horizontal axis of all panels: they are zoomed together."""
        self._figures: dict[str, figure] = {}

    @property
    def ids(self) -> list[str]:
        """Ids of the elements."""
        return list(self._figures)

    def add_panel(self, panel: Panel, marks: Iterable[int] = ()) -> str:
        """Draw curves over steps.

        Args:
            panel: at least one curve.
            marks: steps with a dotted vertical line.

        Returns:
            id of the element that the page must have.
        """
        largest = max(float(np.nanmax(np.abs(curve.values))) for curve in panel.curves)
        plot = self._figure(
            x_range=self._steps,
            y_range=DataRange1d(only_visible=True, default_span=largest or 1.0),  # the span of a curve that is level
            y_axis_type="log" if panel.is_logarithmic else "linear",
            window_axis="x",
        )
        plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
        plot.yaxis.formatter = BasicTickFormatter(power_limit_high=7)
        renderers: dict[str, list] = {}
        for curve in panel.curves:
            renderers.setdefault(_plain(curve.label), []).extend(_draw(plot, curve))
        items = [LegendItem(label={"value": label}, renderers=found[::-1]) for label, found in renderers.items()]
        for step in marks:
            plot.add_layout(Span(location=step, dimension="height", line_dash="dotted", line_color=QUIET))
        drawn = [renderer for item in items for renderer in item.renderers if renderer.name]
        tooltips = [("", f"$name: @value{{%.5g}} {panel.unit}, step @step{{0,0}}")]
        plot.add_tools(HoverTool(renderers=drawn, tooltips=tooltips, formatters={"@value": "printf"}, mode="vline"))
        if len(items) > 1:
            plot.add_layout(_legend(items), "below")
            plot.height += LEGEND_ROW_PX * -(-len(items) // LEGEND_COLUMNS)
        return self._add(f"curve-{panel.name}", plot)

    def add_heat_map(self, name: str, values: np.ndarray, first_step: int, last_step: int, label: str) -> str:
        """Draw a number of each rank over steps as colors.

        Args:
            name: of the element, behind `curve-`.
            values: (R, N) of R ranks at N steps, equally wide.
            first_step, last_step: the edges.
            label: what the number is, with its unit.

        Returns:
            id of the element that the page must have.
        """
        num_ranks = len(values)
        plot = self._figure(x_range=self._steps, y_range=Range1d(-0.5, num_ranks - 0.5))
        plot.yaxis.axis_label = "rank"
        plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
        high = float(np.nanpercentile(values, 99.5))
        colors = LinearColorMapper(palette=Viridis256, low=0.0, high=high or 1.0)
        place = {"x": first_step, "y": -0.5, "dw": max(1, last_step - first_step), "dh": num_ranks}
        drawn = plot.image(image=[values.astype(np.float32)], color_mapper=colors, **place)
        tooltips = [("", f"rank $y{{0}}, step $x{{0,0}}: @image{{%.4g}} {label}")]
        plot.add_tools(HoverTool(renderers=[drawn], tooltips=tooltips, formatters={"@image": "printf"}))
        plot.add_layout(_color_bar(colors, label), "below")
        return self._add(f"curve-{name}", plot)

    def add_timeline(self, kinds: list[str], dots: dict[str, list], bars: dict[str, list]) -> str:
        """Draw what happened over the hours of the clock.

        Args:
            kinds: rows, from below.
            dots: columns time_ms (since 1970), kind, color and text of the events.
            bars: columns start_ms, end_ms, kind and text of the launches.

        Returns:
            id of the element that the page must have.
        """
        plot = self._figure(x_axis_type="datetime", y_range=kinds)
        spans = {"left": "start_ms", "right": "end_ms", "y": "kind", "height": 0.5}
        drawn = [
            plot.hbar(**spans, source=ColumnDataSource(bars), color=COLORS[0], alpha=0.5),
            plot.scatter("time_ms", "kind", source=ColumnDataSource(dots), size=8, color="color"),
        ]
        plot.add_tools(HoverTool(renderers=drawn, tooltips=[("", "@text")]))
        return self._add("curve-timeline", plot)

    def json(self) -> str:
        """All figures as JSON that may stand within a script element: no `<` in it."""
        document = Document(title="")
        with document.models.freeze():  # else each root that shares the steps is gone through again for each
            for plot in self._figures.values():
                document.add_root(plot)
        roots = {plot.id: name for name, plot in self._figures.items()}
        item = {"docid": "run", "roots": roots, "root_ids": list(roots)}
        content = {"docs": {"run": document.to_json(deferred=False)}, "items": [item]}
        return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")

    def _add(self, element: str, plot: figure) -> str:
        self._figures[element] = plot
        return element

    @staticmethod
    def _figure(**ranges) -> figure:
        plot = figure(
            **ranges,
            height=HEIGHT_PX,
            sizing_mode="stretch_width",
            tools=TOOLS,
            active_drag="box_zoom",
            toolbar_location="above",
            toolbar_inner=True,
        )
        plot.toolbar.logo, plot.toolbar.autohide = None, True
        plot.background_fill_alpha = plot.border_fill_alpha = 0.0
        plot.outline_line_color = None
        return plot


def bokeh_script() -> str:
    """Bokeh's own script, without widgets, tables and formulas, none of which the page has."""
    return "\n".join(Resources(mode="inline", components=["bokeh"], minified=True, log_level="warn").js_raw)


def _draw(plot: figure, curve: Curve) -> list:
    """Renderers of a curve; the one that is told under the pointer has a name."""
    steps, values = thin(curve.steps.tolist(), curve.values.tolist(), MAX_POINTS)
    columns = {"step": np.array(steps, dtype=np.int32), "value": np.array(values, dtype=np.float32)}
    source, color = ColumnDataSource(columns), COLORS[curve.color % len(COLORS)]
    line = plot.line(
        "step",
        "value",
        source=source,
        color=color,
        line_width=1.0 if curve.is_faint else 1.8,
        alpha=0.45 if curve.is_faint else 0.75 if curve.is_parent else 1.0,
        line_dash="dashed" if curve.is_parent else "solid",
        name=_plain(curve.label),
    )
    num_values = np.count_nonzero(~np.isnan(columns["value"]))
    if num_values > 1 and not (curve.has_marks and num_values <= MAX_MARKED):
        return [line]
    hollow = {"fill_alpha": 0.0} if curve.is_parent else {}
    return [line, plot.scatter("step", "value", source=source, color=color, size=5, **hollow)]


def _legend(items: list[LegendItem]) -> Legend:
    """Names below a figure, narrow enough for a phone; a click on one hides its curves."""
    return Legend(
        items=items,
        click_policy="hide",
        ncols=LEGEND_COLUMNS,
        location="left",
        margin=0,
        padding=0,
        spacing=1,
        label_text_font_size="12px",
        label_text_color=QUIET,
        border_line_color=None,
        background_fill_alpha=0.0,
    )


def _color_bar(colors: LinearColorMapper, label: str) -> ColorBar:
    bar = ColorBar(color_mapper=colors, title=label, height=10, padding=4, background_fill_alpha=0.0)
    bar.title_text_color = bar.major_label_text_color = QUIET
    return bar


def _plain(label: str) -> str:
    """A label that Bokeh takes for no formula: of one, it would ask the network for a typesetter. A long one is cut."""
    label = label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 1]}…"
    return label.replace("$$", "$ $").replace("\\(", "(").replace("\\[", "[")
