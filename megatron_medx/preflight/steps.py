"""What each task does in each phase of the preflight; what it found goes to rank 0 as a dict of plain values."""

import json
import os
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from megatron_medx.preflight import measure
from megatron_medx.preflight.facts import host_facts
from megatron_medx.preflight.gpu_health import read_health
from megatron_medx.preflight.meeting import Meeting
from megatron_medx.preflight.place import WHOLE_S, Place
from megatron_medx.preflight.shared_files import look_for_others, write_own

GO, STOP = "go", "stop"
"""Rank 0's words after a phase."""


@dataclass
class Work:
    """What a task carries from phase to phase."""

    place: Place
    folder: Path
    """Of the run."""
    meeting: Meeting
    """This thread's connection to rank 0."""
    group_store: dist.Store
    """Another one, for the process groups: threads of NCCL speak through it."""
    facts: dict
    """Found so far."""
    num_steps: int = 0
    """Things that this task has begun; who is behind all others has not answered them."""

    def begin(self, what: str) -> None:
        """Say what is begun, so that rank 0 can name it should it never end."""
        self.num_steps += 1
        self.meeting.doing(json.dumps([self.num_steps, what]))

    @property
    def ranks(self) -> dict[str, list[int]]:
        """Host -> its ranks, both in the same order for all tasks."""
        return json.loads(self.meeting.word("ranks", WHOLE_S))


def arrive(work: Work) -> dict:
    """Be there."""
    place = work.place
    return {"rank": place.rank, "host": place.host, "local_rank": place.local_rank, "pid": os.getpid()}


def look_at_host(work: Work) -> dict:
    """Read versions, GPU, disks, limits, clock."""
    return host_facts(work.place, work.folder)


def write_file(work: Work) -> dict:
    """Write this host's file into the run folder."""
    if work.place.local_rank == 0:
        write_own(work.folder, work.place.host, work.meeting.word("token", WHOLE_S))
    return {}


def read_files(work: Work) -> dict:
    """Look for the files of other hosts."""
    if work.place.local_rank:
        return {}
    token = work.meeting.word("token", WHOLE_S)
    return {"wrong_files": look_for_others(work.folder, work.place.host, list(work.ranks), token)}


def multiply(work: Work) -> dict:
    """Multiply matrices, and meanwhile ask the driver for clocks."""
    device = measure.device_of(work.place.local_rank)
    loaded: dict = {}
    asking = threading.Thread(target=lambda: loaded.update(read_health(work.facts["uuid"])), daemon=True)
    if device.type == "cuda":
        asking.start()
    found = measure.multiply(device, asking.is_alive)
    return found | ({"loaded_health": loaded} if device.type == "cuda" else {})


def add_in_host(work: Work) -> dict:
    """All-reduce over the tasks of this host."""
    from megatron_medx.parallel.probe_groups import open_all, open_some

    work.begin("the start of process groups")
    open_all(work.group_store, work.place.rank, work.place.size, WHOLE_S)
    mine = work.ranks[work.place.host]
    if len(mine) == 1:
        return {"in_host": None}
    work.begin("a sum over the GPUs of its host")
    return {"in_host": measure.sum_over(open_some(mine, WHOLE_S), measure.device_of(work.place.local_rank))}


def add_with_neighbors(work: Work) -> dict:
    """All-reduces of two: this task and the one with the same number on the next host, then on the one before."""
    from megatron_medx.parallel.probe_groups import open_some

    ranks, found = work.ranks, []
    hosts = list(ranks)
    here, number = hosts.index(work.place.host), ranks[work.place.host].index(work.place.rank)
    for pair in (pair for links in rounds(len(hosts)) for pair in links if here in pair):
        other = hosts[sum(pair) - here]
        if number >= min(len(ranks[hosts[end]]) for end in pair):
            continue
        work.begin(f"a sum with {other}")
        group = open_some([ranks[hosts[end]][number] for end in pair], WHOLE_S)
        found.append({"other": other, **measure.sum_over(group, measure.device_of(work.place.local_rank))})
    return {"links": found}


def rounds(num_hosts: int) -> list[list[tuple[int, int]]]:
    """Links of a circle of hosts, in rounds in which no host is twice; the first of a pair is the lower number.

    5 hosts: [(0, 1), (2, 3)], [(1, 2), (3, 4)], [(0, 4)].
    """
    chain = [(host, host + 1) for host in range(num_hosts - 1)]
    closing = [(0, num_hosts - 1)] if num_hosts > 2 else []
    if num_hosts % 2 == 0:
        return [links for links in (chain[::2], chain[1::2] + closing) if links]
    return [links for links in (chain[::2], chain[1::2], closing) if links]


def add_over_all(work: Work) -> dict:
    """All-reduce over all tasks."""
    from megatron_medx.parallel.probe_groups import close_all

    found = measure.sum_over(None, measure.device_of(work.place.local_rank)) if work.place.size > 1 else None
    close_all()
    return {"all": found}


@dataclass(frozen=True, slots=True)
class Step:
    """A phase, as each task goes through it."""

    name: str
    limit_s: float
    """From the moment that all begin it to the last answer."""
    what: str
    """How a message names it."""
    do: Callable[[Work], dict]


STEPS = (
    Step("arrive", 60.0, "the start", arrive),
    Step("host", 30.0, "reading versions, GPUs and disks", look_at_host),
    Step("write", 15.0, "writing to the run folder", write_file),
    Step("read", 20.0, "reading what other hosts wrote to the run folder", read_files),
    Step("multiply", 40.0, "a product of matrices", multiply),
    Step("in_host", 30.0, "a sum over the GPUs of its host", add_in_host),
    Step("links", 30.0, "a sum with a neighbor", add_with_neighbors),
    Step("all", 30.0, "the sum over all tasks", add_over_all),
)
"""In this order: what fails inside a host or between two is named there, before all wait for one another."""


def take_part(work: Work) -> None:
    """Go through all phases, in a thread of its own: what hangs here is named and left behind by the main thread."""
    for step in STEPS:
        work.begin(step.what)
        try:
            found = step.do(work)
        except Exception as error:  # anything, from OSError to what CUDA raises: told with host and GPU by rank 0
            last = traceback.extract_tb(error.__traceback__)[-1]
            found = {"failed": f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"}
        work.facts |= found
        work.meeting.post(step.name, found)
        # behind the last phase no word is waited for: rank 0 may be gone by then
        if step is STEPS[-1] or work.meeting.word(step.name, WHOLE_S) != GO:
            return
