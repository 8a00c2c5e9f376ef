"""`medx job preflight RUN`: one task for each GPU looks at its host, GPU and links before training starts.

Each task works in a thread; its main thread only waits, so that no call of a driver or of NCCL can keep it. Rank 0
gathers, judges and speaks (lead.py). The same code runs over gloo where there is no GPU.
"""

import faulthandler
import os
import socket
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_medx.errors import ParallelismError
from megatron_medx.preflight.finding import Finding, shortened
from megatron_medx.preflight.place import WHOLE_S, Place, place_of
from megatron_medx.run_folder import events
from megatron_medx.terminal import complain, say

USER_ERROR = 2
"""Exit code where the run must not start: a person or the scheduler has to choose other hosts."""

MARGIN_S = 10.0
"""Seconds after rank 0's last limit in which its word must have reached everybody."""

LEAVE_S = 5.0
"""Seconds that rank 0, in whose process the store is, stays for others to read its word."""

HANGS_S = 1.0
"""Seconds for this process's own work to end when the verdict is bad: what was named as hanging never will."""

IMPORT_S = 60.0
"""Seconds for which others wait for rank 0's store: torch may come from a cold shared disk."""


MOST_SAID = 20
"""Findings of one severity that are said in full: what is wrong everywhere would fill the screen."""


def preflight(folder: Path, patience_s: float | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Look at all hosts of this job step together; rank 0 says what was found.

    Args:
        folder: of the run; events go there. It need not exist yet.
        patience_s: seconds for all tasks to arrive; None means MEDX_PREFLIGHT_PATIENCE_S, else 60.
        environ: Slurm's variables; without them this process is alone.

    Returns:
        0, or 2 where something stops the run. Does not return at all where a call hangs: the process then ends with 2.

    Raises:
        ParallelismError: rank 0 cannot be reached, or its port is taken.
    """
    place = place_of(environ, socket.gethostname())
    if patience_s is None:
        patience_s = float(environ.get("MEDX_PREFLIGHT_PATIENCE_S", 60.0))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # the store logs a stack for each wait that ends
    _end_after(IMPORT_S + patience_s)
    try:
        if place.rank == 0:
            code, worker = _lead(place, folder, patience_s)
        else:
            code, worker = _follow(place, folder, patience_s)
        worker.join(timeout=HANGS_S if code else LEAVE_S)
    finally:
        faulthandler.cancel_dump_traceback_later()
    if worker.is_alive():  # it hangs in a call that nothing can end but the end of the process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or USER_ERROR)
    return code


def _lead(place: Place, folder: Path, patience_s: float) -> tuple[int, threading.Thread]:
    from megatron_medx.preflight.lead import lead
    from megatron_medx.preflight.meeting import Meeting, connect, open_store

    start = time.monotonic()
    _end_after(WHOLE_S + 2 * MARGIN_S)
    folder.mkdir(parents=True, exist_ok=True)
    server, port = open_store(place)
    meeting = Meeting(server, place.rank, place.size)
    worker = _start_work(place, folder, lambda: connect(place, "127.0.0.1", port, patience_s))
    outcome = lead(place, folder, meeting, uuid.uuid4().hex, patience_s)
    outcome.took_s = time.monotonic() - start
    _report(outcome.findings)
    code = USER_ERROR if outcome.stops else 0
    if code:
        bad = list(dict.fromkeys(host for finding in outcome.stops for host in finding.hosts))
        events.append(folder, "preflight_failed", problems=[finding.found for finding in outcome.stops], hosts=bad)
        say(f"preflight failed after {outcome.took_s:.0f} s: {shortened(bad) or 'no host alone is to blame'}")
    else:
        events.append(folder, "preflight_passed", hosts=list(outcome.hosts), took_s=round(outcome.took_s, 1))
        say(f"preflight passed in {outcome.took_s:.0f} s: {_summary(outcome.known)}")
    meeting.tell("verdict", str(code))
    deadline = time.monotonic() + LEAVE_S
    while meeting.store.add("left", 0) < len(outcome.known) - 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    return code, worker


def _report(findings: Sequence[Finding]) -> None:
    """Say what was found, what stops the run last; of very many only the first ones."""
    for stops in (False, True):
        same = [finding for finding in findings if finding.stops is stops]
        for finding in same[:MOST_SAID]:
            complain(finding.text())
        if len(same) > MOST_SAID:
            complain(f"and {len(same) - MOST_SAID} more{', which events.jsonl names' if stops else ' warnings'}")


def _follow(place: Place, folder: Path, patience_s: float) -> tuple[int, threading.Thread]:
    from megatron_medx.preflight.meeting import Meeting, connect

    def reach():
        return connect(place, place.address, place.port, max(patience_s, IMPORT_S))

    try:
        meeting = Meeting(reach(), place.rank, place.size)
    except ParallelismError:
        if place.local_rank:
            sys.exit(USER_ERROR)  # the first task of the host says it
        raise
    _end_after(WHOLE_S + 2 * MARGIN_S)
    worker = _start_work(place, folder, reach)
    try:
        code = int(meeting.word("verdict", WHOLE_S + MARGIN_S))
        meeting.store.add("left", 1)
    except RuntimeError as error:
        if place.local_rank == 0:
            text = str(error).splitlines()[0]
            complain(f"{place.host}: no word from rank 0 at {place.address}:{place.port}, leaving: {text}")
        code = USER_ERROR
    return code, worker


def _end_after(limit_s: float) -> None:
    """End this process then, in place of an earlier limit, also if the interpreter's lock is never given back.

    A driver that does not answer, or a disk under torch's files, can keep it; the stacks go to stderr.
    """
    faulthandler.dump_traceback_later(limit_s, exit=True, file=sys.__stderr__)


def _start_work(place: Place, folder: Path, reach) -> threading.Thread:
    """Let the phases run in a thread, with connections of their own."""
    from megatron_medx.preflight.meeting import Meeting
    from megatron_medx.preflight.steps import Work, take_part

    work = Work(place, folder, Meeting(reach(), place.rank, place.size), reach(), {})
    worker = threading.Thread(target=take_part, args=(work,), name="preflight", daemon=True)
    worker.start()
    return worker


def _summary(known: Mapping[int, Mapping]) -> str:
    """One line of the numbers that a person compares with the last time."""
    facts = list(known.values())
    hosts = {fact["host"] for fact in facts}
    kinds = shortened(fact["name"] for fact in facts if "name" in fact) or "no GPU"
    parts = [f"{len(hosts)} hosts, {len(facts)} tasks, {kinds}"]
    parts.append(f"product of matrices {statistics.median_low(fact['multiply_s'] for fact in facts) * 1e3:.2f} ms")
    within = [fact["in_host"]["gb_s"] for fact in facts if fact["in_host"]]
    between = [link["gb_s"] for fact in facts for link in fact["links"]]
    over_all = [fact["all"]["gb_s"] for fact in facts if fact["all"]]
    for rates, where in ((within, "inside hosts"), (between, "between hosts"), (over_all, "over all")):
        if rates:
            parts.append(f"{min(rates):.2f} GB/s {where}")
    return "; ".join(parts)
