"""The picture of a step: when each pipeline stage runs which row, and what stands behind the last one."""

from pathlib import Path

from megatron_medx.planner.step_time import Prediction

FORWARD, BACKWARD, AFTER = ("#9ec5e8", "#4f86b8", "#1d4f7c"), ("#f2c9a0", "#dd9550", "#a75d1c"), "#8a8a8a"
"""Lighter for a stage's first chunk, darker for its last."""

MOST_NUMBERED = 400
"""Passes up to which each has its row's number on it."""


def draw_timeline(prediction: Prediction, title: str, path: Path) -> None:
    """Write the picture as PNG.

    Args:
        prediction: of the step; the timeline is its slowest replica's.
        title: line above it.
        path: file to write.
    """
    from matplotlib.figure import Figure  # a second of imports that a plan without a picture does not need
    from matplotlib.patches import Patch

    stages = prediction.timeline.stages
    figure = Figure(figsize=(14, 1.8 + 0.45 * len(stages)), layout="constrained")
    axes = figure.subplots()
    num_chunks = 1 + max(run.chunk for stage in stages for run in stage)
    is_numbered = sum(map(len, stages)) <= MOST_NUMBERED
    for number, stage in enumerate(stages):
        for colors, is_forward in ((FORWARD, True), (BACKWARD, False)):
            runs = [run for run in stage if run.is_forward == is_forward]
            spans = [(run.start_s, run.end_s - run.start_s) for run in runs]
            tones = [colors[run.chunk * (len(colors) - 1) // max(1, num_chunks - 1)] for run in runs]
            axes.broken_barh(spans, (number - 0.4, 0.8), facecolors=tones, edgecolor="white", linewidth=0.3)
        for run in stage if is_numbered else ():
            axes.text((run.start_s + run.end_s) / 2, number, str(run.row), ha="center", va="center", fontsize=6)
    end = prediction.timeline.total_s
    axes.broken_barh([(end, prediction.step_s - end)], (-0.4, len(stages) - 0.2), facecolors=AFTER)
    axes.set_xlim(0, prediction.step_s)
    axes.set_ylim(len(stages) - 0.5, -0.5)
    axes.set_yticks(range(len(stages)), [f"stage {number}" for number in range(len(stages))])
    axes.set_xlabel("seconds of a step (predicted)")
    axes.set_title(title, loc="left")
    legend = (("forward", FORWARD[0]), ("backward", BACKWARD[0]), ("gradients, weights, optimizer, rest", AFTER))
    handles = [Patch(color=color, label=label) for label, color in legend]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(legend), frameon=False)
    figure.savefig(path, dpi=120, format="png")
