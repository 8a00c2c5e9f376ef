"""What is wrong with hosts, judged from the facts of all tasks: pure functions of plain values.

A fact is a dict of one task: `rank`, `host`, `local_rank`, and what facts.py found. What stops the run and what is only
said stands at each function, with the reason.
"""

import statistics
from collections.abc import Mapping, Sequence

from megatron_medx.preflight.finding import Finding, by_host, leave_out, majority, shortened, task_name

MOST_IDLE_MIB = 4096
"""Memory in use that is nobody's fault: the driver takes up to some 600 MiB, this task's own context as much."""

MOST_SKEW_S = 3.0
"""Clocks further apart than this are named: events of hosts are told in the wrong order. NTP keeps milliseconds."""

LEAST_OPEN_FILES = 4096
"""Soft limit of open files: sockets of NCCL and gloo to each peer, shards, workers. 1024 is Linux' default."""

Facts = Sequence[Mapping]


def missing_tasks(arrived: Facts, size: int, tasks_by_host: Mapping[str, int], patience_s: float) -> list[Finding]:
    """Tasks that never came: stops, as nothing starts without them. Named by host where Slurm told the layout."""
    missing = sorted(set(range(size)) - {fact["rank"] for fact in arrived})
    if not missing:
        return []
    came = {host: len(tasks) for host, tasks in by_host(arrived).items()}
    short = {host: f"{came.get(host, 0)} of {num}" for host, num in tasks_by_host.items() if came.get(host, 0) < num}
    where = ", ".join(f"{host}: {count}" for host, count in short.items()) or "hosts unknown"
    return [
        Finding(
            f"{len(missing)} of {size} tasks did not come within {patience_s:g} s: rank "
            f"{shortened(map(str, missing))}; tasks that came by host: {where}",
            "all tasks started and connected to rank 0",
            leave_out(short) if short else "see the job's output for tasks that failed to start",
            tuple(short),
            blocks=True,
        )
    ]


def gpus(facts: Facts) -> list[Finding]:
    """Stops for a GPU that is missing or of another kind: ranks have none, or the slowest kind sets the pace."""
    found = []
    if not any(fact["num_gpus"] for fact in facts):
        return _driver_without_gpus(facts)
    odd: dict[tuple[int, int], list[str]] = {}
    for host, tasks in by_host(facts).items():
        if (seen := min(task["num_gpus"] for task in tasks)) != len(tasks):
            odd.setdefault((seen, len(tasks)), []).append(host)
    for (seen, num_tasks), hosts in odd.items():
        is_short = seen < num_tasks
        bound = "ask for --gpus-per-node, without --gpus-per-task and --gpu-bind; or " if seen == 1 else ""
        found.append(
            Finding(
                f"{shortened(hosts)}: {seen} GPUs visible to each of {num_tasks} tasks",
                f"{num_tasks} GPUs, one for each task, all visible to all tasks of the host",
                bound + leave_out(hosts) if is_short else f"use --ntasks-per-node={seen}, or the others stay idle",
                tuple(hosts),
                stops=is_short,
                blocks=is_short,
            )
        )
    with_gpu = [fact for fact in facts if "name" in fact]
    kinds = [(fact["name"], round(fact["memory_bytes"] / 2**30)) for fact in with_gpu]
    usual = majority(kinds) if kinds else None
    for host, tasks in by_host(with_gpu).items():
        odd = {kind for task in tasks if (kind := (task["name"], round(task["memory_bytes"] / 2**30))) != usual}
        if odd:
            names = ", ".join(f"{name} of {memory} GiB" for name, memory in sorted(odd))
            needed = f"{usual[0]} of {usual[1]} GiB, as most tasks have"
            found.append(Finding(f"{host}: {names}", needed, leave_out([host]), (host,)))
    return found


def _driver_without_gpus(facts: Facts) -> list[Finding]:
    hosts = list(by_host(fact for fact in facts if fact["expects_gpus"]))
    if not hosts:
        return []  # a machine without GPUs: all the rest is looked at, over gloo
    return [
        Finding(
            f"NVIDIA's driver on {shortened(hosts)}, but torch sees no GPU on any host",
            "GPUs that torch can use",
            "ask for --gpus-per-node; compare the driver with torch's CUDA (medx doctor)",
            tuple(hosts),
            blocks=True,
        )
    ]


def gpu_health(facts: Facts) -> list[Finding]:
    """Of idle GPUs. Stops for damaged memory and for memory that another process holds: both end runs later."""
    found = []
    silent: dict[str, list[Mapping]] = {}
    for fact in facts:
        health, gpu = fact.get("health"), task_name(fact)
        if health is None:
            continue
        host, out = (fact["host"],), leave_out([fact["host"]])
        if "error" in health:
            silent.setdefault(health["error"], []).append(fact)
            continue
        if health["uncorrected_ecc"]:
            errors = f"{gpu}: {health['uncorrected_ecc']} uncorrected ECC errors since the driver was loaded"
            found.append(Finding(errors, "none: values in its memory were lost", out, host))
        if health["remap_pending"] or health["remap_failed"]:
            what = "failed" if health["remap_failed"] else "pending, until the GPU is reset"
            found.append(Finding(f"{gpu}: remapping of memory rows {what}", "memory without faults", out, host))
        if (health["used_mib"] or 0) > MOST_IDLE_MIB:
            used = f"{gpu}: {health['used_mib']} MiB in use before this job put tensors on it"
            needed = f"at most {MOST_IDLE_MIB} MiB: a process of another job, or a leftover one, holds it"
            found.append(Finding(used, needed, out, host))
    for error, tasks in silent.items():
        text, needed = f"{shortened(map(task_name, tasks))}: {error}", "an answer of nvidia-smi about its health"
        found.append(Finding(text, needed, "health was not looked at", tuple(by_host(tasks)), stops=False))
    return found


def versions(facts: Facts) -> list[Finding]:
    """Stops for software that is not the same everywhere: NCCL would hang or the result depend on the host."""
    told = {host: dict(tasks[0]["versions"]) for host, tasks in by_host(facts).items()}
    for host, tasks in by_host(facts).items():
        if driver := (tasks[0].get("health") or {}).get("driver"):
            told[host]["driver"] = driver
    found = []
    for name in dict.fromkeys(name for own in told.values() for name in own):
        # of the driver nothing is known where a GPU is missing or silent, which is said elsewhere
        versions = {host: own.get(name, "none") for host, own in told.items() if name in own or name != "driver"}
        usual = majority(versions.values())
        odd: dict[str, list[str]] = {}
        for host, version in versions.items():
            if version != usual:
                odd.setdefault(version, []).append(host)
        for version, hosts in odd.items():
            do = leave_out(hosts) + "; or check that the environment is one folder that all hosts see"
            needed = f"{usual}, as {list(versions.values()).count(usual)} of {len(versions)} hosts have"
            found.append(Finding(f"{shortened(hosts)}: {name} {version}", needed, do, tuple(hosts)))
    return found


def disks(facts: Facts, needs: Mapping[str, int]) -> list[Finding]:
    """Stops where the run folder or /tmp is full; of /dev/shm the need is a worst case, so it is only said."""
    found = []
    for name, needed_bytes in needs.items():
        short = {
            host: tasks[0]["disks"][name]
            for host, tasks in by_host(facts).items()
            if name in tasks[0]["disks"] and tasks[0]["disks"][name]["free_bytes"] < needed_bytes
        }
        if not short:
            continue
        worst = min(short.values(), key=lambda disk: disk["free_bytes"])
        found.append(
            Finding(
                f"{shortened(short)}: {worst['free_bytes'] / 1e9:.1f} GB free for {name} ({worst['path']})",
                f"{needed_bytes / 1e9:.1f} GB: {REASONS[name]}",
                f"free space there{'' if name == 'run folder' else ', or ' + leave_out(short)}",
                tuple(short),
                stops=name != "/dev/shm",
            )
        )
    return found


REASONS = {
    "run folder": "one more checkpoint",
    "/tmp": "compiled kernels and sockets",
    "/dev/shm": "NCCL's buffers, and rows that workers hand over when all of them are full of images",
}
"""Disk -> what training puts there."""


def clocks(facts: Facts) -> list[Finding]:
    """Says which clocks are off; stops nothing, as training never compares clocks of hosts."""
    seen = {host: min(task["clock_s"] for task in tasks) for host, tasks in by_host(facts).items()}
    usual = statistics.median_low(seen.values())
    off = {host: clock - usual for host, clock in seen.items() if abs(clock - usual) > MOST_SKEW_S}
    return [
        Finding(
            f"{host}: clock {skew:+.1f} s from most hosts",
            f"within {MOST_SKEW_S:g} s, or times in events.jsonl and logs mislead",
            "tell who runs the cluster: NTP does not run there",
            (host,),
            stops=False,
        )
        for host, skew in off.items()
    ]


def limits(facts: Facts) -> list[Finding]:
    """Says which limits of processes are low; stops nothing, as NCCL's all-reduce shows whether they are too low."""
    found = []
    first = {host: tasks[0] for host, tasks in by_host(facts).items()}
    few = [host for host, task in first.items() if task["open_files"] < LEAST_OPEN_FILES]
    if few:
        least = min(first[host]["open_files"] for host in few)
        do = "ulimit -n 65536 in the job script, or LimitNOFILE of slurmd"
        found.append(
            Finding(f"{shortened(few)}: {least} open files allowed", f"{LEAST_OPEN_FILES}", do, tuple(few), stops=False)
        )
    locked = [host for host, task in first.items() if task["infiniband"] and task["locked_bytes"] is not None]
    if locked:
        least = min(first[host]["locked_bytes"] for host in locked)
        found.append(
            Finding(
                f"{shortened(locked)}: InfiniBand, but {least} bytes of locked memory at most",
                "unlimited: adapters read and write memory that cannot move",
                "ulimit -l unlimited in the job script, or LimitMEMLOCK=infinity of slurmd; in containers --ulimit",
                tuple(locked),
                stops=False,
            )
        )
    return found


def shared_files(facts: Facts) -> list[Finding]:
    """Stops where a host does not see another's file: checkpoints would be incomplete, or lie on several disks.

    Who misses several hosts, or is missed by several, is the one that is cut off; of two alone nobody can say which.
    """
    open_pairs = [
        (host, other, problem)
        for host, tasks in by_host(facts).items()
        for other, problem in (tasks[0].get("wrong_files") or {}).items()
    ]
    found = []
    while open_pairs:
        partners: dict[str, set[str]] = {}
        for host, other, _ in open_pairs:
            partners.setdefault(host, set()).add(other)
            partners.setdefault(other, set()).add(host)
        worst = max(partners, key=lambda host: len(partners[host]))
        others = sorted(partners[worst])
        guilty = (worst,) if len(others) > 1 else (worst, *others)
        problem = next(problem for *pair, problem in open_pairs if worst in pair)
        found.append(
            Finding(
                f"{worst} and {shortened(others)} do not see each other's files in the run folder ({problem})",
                "one file system for all hosts, on which a file is seen within seconds",
                f"put run.folder on a shared disk; if it is: {leave_out(guilty)}",
                guilty,
            )
        )
        open_pairs = [pair for pair in open_pairs if worst not in pair[:2]]
    return found
