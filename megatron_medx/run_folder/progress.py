"""Whether a run gets anywhere: counted from its events, for whoever decides to start it once more."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from megatron_medx.run_folder.names import METRICS_FILE

STEP_EVENTS = frozenset({"first_step", "saved", "signal", "interrupted", "failed", "finished"})
"""Events whose `step` a launch has done; that of `hang` it has begun."""

ENDS_BADLY = frozenset({"failed", "hang"})
"""Events that end a launch as a failure; a launch that has several of them failed once."""

_TAIL_BYTES = 16_384
"""More than two lines of metrics.jsonl, which have some 300 bytes each."""


def failures_without_progress(events: Sequence[dict]) -> int:
    """Launches that failed in succession, none of them with a step that no launch before had reached.

    The failure of the launch that made the last new step counts as the first of them: a run that fails at step 40, and
    twice more on its way there, has failed three times. A rollback sets the goal back to its step. After `gave_up` a
    person has looked, so counting starts again; the steps that were reached stay reached.

    Args:
        events: of a run, oldest first (run_folder/events.py).
    """
    best = reached = failures = 0
    has_failed = False
    for event in events:
        name = event["event"]
        if name == "launched":
            best, reached, has_failed = max(best, reached), 0, False
        elif name == "rolled_back":
            best = reached = event.get("to_step") or 0
        elif name == "gave_up":
            failures = 0
        if name in STEP_EVENTS or name == "hang":
            reached = max(reached, (event.get("step") or 0) - (name == "hang"))
            if reached > best and not has_failed:
                best, failures = reached, 0
        if name in ENDS_BADLY and not has_failed:
            failures, has_failed = failures + 1, True
    return failures


def last_step(folder: Path) -> int | None:
    """The last step that metrics.jsonl tells of, or None; the end of the file is read and no more.

    Until a resumed launch has done its first step that is the last one of the launch before.
    """
    try:
        with open(folder / METRICS_FILE, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):  # cut off while it was written
            continue
    return None
