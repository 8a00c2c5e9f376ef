"""What the preflight finds wrong, and arithmetic that its judges share."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it must be, with the hosts that it is about."""

    found: str
    needed: str
    do: str
    hosts: tuple[str, ...] = ()
    stops: bool = True
    """False for what is said and stops nothing."""
    blocks: bool = False
    """True where what comes next cannot be measured at all."""

    def text(self) -> str:
        """The three parts of an error; of a warning, one line."""
        if self.stops:
            return f"found:  {self.found}\nneeded: {self.needed}\ndo:     {self.do}"
        return f"warning: {self.found}; needed: {self.needed}; {self.do}"


def leave_out(hosts: Iterable[str]) -> str:
    """What to type to start without some hosts."""
    return f"sbatch --exclude={','.join(dict.fromkeys(hosts))} slurm/pretrain.sh ..., and tell who runs the cluster"


def task_name(fact: Mapping) -> str:
    """How a message names a task: `node7, GPU 3`, or without GPUs `node7, task 3`."""
    return f"{fact['host']}, {'GPU' if 'name' in fact else 'task'} {fact['local_rank']}"


def by_host(facts: Iterable[Mapping]) -> dict[str, list[Mapping]]:
    """Facts of the tasks of each host, in the order of ranks."""
    hosts: dict[str, list[Mapping]] = {}
    for fact in sorted(facts, key=lambda fact: fact["rank"]):
        hosts.setdefault(fact["host"], []).append(fact)
    return hosts


def majority(values: Iterable[object]) -> object:
    """The value that most have; of equally many, the one that comes first."""
    return Counter(values).most_common(1)[0][0]


def upper_quarter(values: Iterable[float]) -> float:
    """The value that a quarter of all reach, and at least one.

    What is healthy is taken from the better end: one bad host slows two of three links, and the median is a bad one.
    """
    ordered = sorted(values, reverse=True)
    return ordered[max(0, len(ordered) // 4 - 1)]


def shortened(names: Iterable[str], most: int = 8) -> str:
    """Names with commas; of more than `most`, the first ones and how many more."""
    names = list(dict.fromkeys(names))
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
