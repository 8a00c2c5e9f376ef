"""The seconds of some steps by part and kind: of a rank as JSON, of all ranks as text."""

from collections.abc import Iterable, Iterator, Sequence

from megatron_medx.training.profiling.trace import Times, waits
from megatron_medx.training.profiling.vocabulary import COMMUNICATION, DATA_WAIT, PARTS

NUM_SHOWN = 8
"""Operations that the text names."""


def summarize(times: Times, rank: int, first_step: int, last_step: int) -> dict:
    """What a rank's trace says, as plain values; seconds are of all its steps together.

    Keys: `rank`, `first_step`, `last_step`, `on_gpu`, `step_s` (of each), `busy_s`, `working_s`, `communication_s`,
    `data_wait_s`; `parts`, by name `forward_s`, `backward_s` and `kinds`, the seconds of both passes by kind of work;
    `top`, name and seconds of the longest operations.
    """
    parts: dict[str, dict] = {}
    for work, seconds in times.seconds.items():
        part = parts.setdefault(work.part, {"forward_s": 0.0, "backward_s": 0.0, "kinds": {}})
        part["backward_s" if work.is_backward else "forward_s"] += seconds
        part["kinds"][work.kind] = part["kinds"].get(work.kind, 0.0) + seconds
    return {
        "rank": rank,
        "first_step": first_step,
        "last_step": last_step,
        "on_gpu": times.on_gpu,
        "step_s": times.step_s,
        "busy_s": times.busy_s,
        "working_s": times.working_s(),
        "communication_s": sum(s for work, s in times.seconds.items() if waits(work) and work.part != DATA_WAIT),
        "data_wait_s": times.data_wait_s,
        "parts": {name: parts[name] for name in PARTS if name in parts},
        "top": times.top,
    }


def summary_lines(summaries: Sequence[dict]) -> list[str]:
    """The text for people: parts and kinds, each rank, the slowest one.

    Args:
        summaries: of all ranks, in order.
    """
    one = summaries[0]
    num_steps, step_s = len(one["step_s"]), _mean(sum(entry["step_s"]) for entry in summaries)
    what = "kernels of the GPU" if one["on_gpu"] else "the CPU thread that trains"
    slowest = max(summaries, key=lambda entry: entry["working_s"])
    return [
        f"steps {one['first_step']} to {one['last_step']} under PyTorch's profiler, whose own cost is in them",
        f"seconds a step of {what}, mean of {len(summaries)} rank{'s' * (len(summaries) > 1)}",
        "",
        *_part_lines(summaries, num_steps, step_s),
        "",
        *_kind_lines(summaries, num_steps, step_s),
        "",
        *_rank_lines(summaries, num_steps),
        *([_slowest(slowest, summaries, num_steps)] if len(summaries) > 1 else []),
        "",
        f"{'longest on rank ' + str(slowest['rank']):60}{'s / step':>10}",
        *(f"{_shortened(name):60}{seconds / num_steps:10.4f}" for name, seconds in slowest["top"][:NUM_SHOWN]),
    ]


def _part_lines(summaries: Sequence[dict], num_steps: int, step_s: float) -> Iterator[str]:
    yield f"{'part':24}{'forward':>10}{'backward':>10}{'both':>10}{'of step':>9}{'most':>10}{'on rank':>9}"
    for name in PARTS:
        entries = [entry["parts"].get(name, {"forward_s": 0.0, "backward_s": 0.0}) for entry in summaries]
        forward, backward = (_mean(entry[key] for entry in entries) for key in ("forward_s", "backward_s"))
        both = [entry["forward_s"] + entry["backward_s"] for entry in entries]
        if not any(both):
            continue
        rank = max(range(len(both)), key=both.__getitem__)
        passes = f"{forward / num_steps:10.4f}{backward / num_steps:10.4f}"
        most = f"{both[rank] / num_steps:10.4f}{summaries[rank]['rank']:>9}"
        yield f"{name:24}{passes}{_share(forward + backward, num_steps, step_s)}{most}"
    if summaries[0]["on_gpu"]:
        idle = _mean(sum(entry["step_s"]) - entry["busy_s"] for entry in summaries)
        yield f"{'without a kernel':44}{_share(idle, num_steps, step_s)}"
    yield f"{'step':44}{_share(step_s, num_steps, step_s)}"


def _kind_lines(summaries: Sequence[dict], num_steps: int, step_s: float) -> Iterator[str]:
    sums: dict[str, float] = {}
    for entry in summaries:
        for part in entry["parts"].values():
            for kind, seconds in part["kinds"].items():
                sums[kind] = sums.get(kind, 0.0) + seconds / len(summaries)
    yield f"{'kind of work':44}{'both':>10}{'of step':>9}"
    for kind, seconds in sorted(sums.items(), key=lambda item: -item[1]):
        yield f"{kind:44}{_share(seconds, num_steps, step_s)}"


def _rank_lines(summaries: Sequence[dict], num_steps: int) -> Iterator[str]:
    yield f"{'rank':>6}{'step':>10}{'working':>10}{COMMUNICATION:>16}{DATA_WAIT:>12}"
    for entry in summaries:
        of_a_step = (sum(entry["step_s"]), entry["working_s"], entry["communication_s"], entry["data_wait_s"])
        step, working, communication, waiting = (seconds / num_steps for seconds in of_a_step)
        yield f"{entry['rank']:>6}{step:10.4f}{working:10.4f}{communication:16.4f}{waiting:12.4f}"


def _slowest(slowest: dict, summaries: Sequence[dict], num_steps: int) -> str:
    others = _mean(entry["working_s"] for entry in summaries if entry is not slowest)
    return (
        f"rank {slowest['rank']} works longest, {slowest['working_s'] / num_steps:.4f} s a step; "
        f"the others {others / num_steps:.4f} on average, and wait for it"
    )


def _share(seconds: float, num_steps: int, step_s: float) -> str:
    return f"{seconds / num_steps:10.4f}{seconds / (step_s or 1.0):9.1%}"


def _mean(values: Iterable[float]) -> float:
    held = list(values)
    return sum(held) / len(held)


def _shortened(name: str) -> str:
    return name if len(name) < 60 else f"{name[:56]}..."
