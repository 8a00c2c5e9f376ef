"""What is slow or computes wrongly, judged from the measurements of all tasks: pure functions of plain values.

Only machines with GPUs are stopped for being slow. On a CPU others take their share of cores, and gloo's rates are
those of the scheduler: they are shown and not compared.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from megatron_medx.preflight.finding import Finding, by_host, leave_out, majority, task_name, upper_quarter

SLOW_STOPS, SLOW_SAID = 1.3, 1.1
"""Times the median of the same GPUs, for a product of matrices: above the first it stops the run, above the second it
is said. GPUs of one kind differ by some percent; all wait for the slowest, so one at 1.3 costs 23 % of them all."""

SLOW_CPU = 3.0
"""The same for a CPU."""

LOW_CLOCK = 0.5
"""SM clock under load over its maximum. A power limit takes an H100 to some 0.7; below half, something else does."""

SLOW_LINK = 0.6
"""Rate over that of the better ones. A host that lost one of two ports is at 0.5; NVLink lost for PCIe is below 0.2."""

Facts = Sequence[Mapping]


def products(facts: Facts) -> list[Finding]:
    """Matrices multiplied by every task: wrong results stop, slow ones too from SLOW_STOPS on."""
    found = []
    for kind in dict.fromkeys(_kind(fact) for fact in facts):
        same = [fact for fact in facts if _kind(fact) == kind]
        found += _wrong_products(same)
        usual_s = statistics.median_low(fact["multiply_s"] for fact in same)
        for fact in same:
            factor = fact["multiply_s"] / usual_s
            if factor > (SLOW_SAID if "name" in fact else SLOW_CPU):
                found.append(
                    Finding(
                        f"{task_name(fact)}: a product of matrices takes {fact['multiply_s'] * 1e3:.2f} ms, "
                        f"{factor:.2f} x the median{_reasons(fact)}",
                        f"{usual_s * 1e3:.2f} ms, as {kind} has elsewhere; a run is as fast as its slowest GPU",
                        leave_out([fact["host"]]),
                        (fact["host"],),
                        stops="name" in fact and factor > SLOW_STOPS,
                    )
                )
    return found + _clocks(facts)


def _wrong_products(same: Facts) -> list[Finding]:
    usual = majority(fact["checksum"] for fact in same)
    num_usual = sum(fact["checksum"] == usual for fact in same)
    found = []
    for fact in same:
        wrong = []
        if fact["checksum"] != usual:
            wrong.append(f"its result is {fact['checksum']}, that of {num_usual} of {len(same)} is {usual}")
        if fact["num_odd"]:
            wrong.append(f"{fact['num_odd']} repetitions gave another result than the first")
        if wrong:
            needed = "the same bits, as inputs are the same and sums exact: it computes wrongly"
            text = f"{task_name(fact)}: {'; '.join(wrong)}"
            found.append(Finding(text, needed, leave_out([fact["host"]]), (fact["host"],)))
    return found


def _clocks(facts: Facts) -> list[Finding]:
    """Clocks under load: hardware that slows itself down stops, as it is broken or not cooled; software only warns."""
    found = []
    for fact in facts:
        health = fact.get("loaded_health") or {}
        reasons, clock, most = (health.get(name) for name in ("reasons", "sm_mhz", "max_sm_mhz"))
        host, out = (fact["host"],), leave_out([fact["host"]])
        if reasons:
            stops = any(reason != "software thermal slowdown" for reason in reasons)
            text = (
                f"{task_name(fact)}: {', '.join(reasons)} under load, {health['temperature_c']} degrees C, {clock} MHz"
            )
            found.append(Finding(text, "clocks that nothing but the power limit lowers", out, host, stops))
        elif clock and most and clock < LOW_CLOCK * most:
            text = f"{task_name(fact)}: {clock} MHz under load, of at most {most}"
            found.append(Finding(text, f"at least {LOW_CLOCK * most:.0f} MHz", out, host))
    return found


def sums_in_hosts(facts: Facts) -> list[Finding]:
    """All-reduces inside each host: a wrong sum stops; a slow one is found beside other hosts, if there are any."""
    hosts = {host: [task["in_host"] for task in tasks if task["in_host"]] for host, tasks in by_host(facts).items()}
    hosts = {host: sums for host, sums in hosts.items() if sums}
    found = [
        _wrong_sum(f"inside {host}", (host,))
        for host, sums in hosts.items()
        if not all(one["is_right"] for one in sums)
    ]
    rates = {host: min(one["gb_s"] for one in sums) for host, sums in hosts.items()}
    for host, (rate, usual) in _slow(rates, facts).items():
        text = f"{host}: {rate:.1f} GB/s between its GPUs"
        found.append(Finding(text, f"{usual:.1f} GB/s, as other hosts have", leave_out([host]), (host,)))
    return found


def links(facts: Facts) -> list[Finding]:
    """All-reduces of neighbors: a host is blamed where all its links are slow, else both ends of the link."""
    rates: dict[tuple[str, str], float] = {}
    wrong: set[tuple[str, str]] = set()
    for fact in facts:
        for link in fact["links"]:
            pair = tuple(sorted((fact["host"], link["other"])))
            rates[pair] = min(rates.get(pair, link["gb_s"]), link["gb_s"])
            if not link["is_right"]:
                wrong.add(pair)
    found = [_wrong_sum(f"between {a} and {b}", (a, b)) for a, b in sorted(wrong)]
    slow = _slow(rates, facts)
    num_links, num_slow = (Counter(host for pair in pairs for host in pair) for pairs in (rates, slow))
    blamed = {host for host in num_slow if num_links[host] > 1 and num_slow[host] == num_links[host]}
    for host in sorted(blamed):
        at = {pair: values for pair, values in slow.items() if host in pair}
        rate, usual = min(at.values())
        text = f"{host}: {rate:.1f} GB/s to {' and '.join(a if b == host else b for a, b in at)}"
        found.append(Finding(text, f"{usual:.1f} GB/s, as other links have", leave_out([host]), (host,)))
    for (a, b), (rate, usual) in slow.items():
        if not blamed & {a, b}:
            text = f"{rate:.1f} GB/s between {a} and {b}; their other links are fast"
            found.append(Finding(text, f"{usual:.1f} GB/s, as other links have", leave_out([a, b]), (a, b)))
    return found


def sum_over_all(facts: Facts) -> list[Finding]:
    """The all-reduce over all tasks; a wrong sum here alone cannot be laid to one host."""
    is_right = all(fact["all"]["is_right"] for fact in facts if fact["all"])
    return [] if is_right else [_wrong_sum("over all tasks", ())]


def _wrong_sum(where: str, hosts: tuple[str, ...]) -> Finding:
    do = leave_out(hosts) if hosts else "run again with NCCL_ALGO=Ring, then with half of the hosts, to find the one"
    return Finding(f"a wrong sum of an all-reduce {where}", "the exact sum: inputs are small integers", do, hosts)


def _slow(rates: Mapping, facts: Facts) -> dict:
    """Keys whose rate is far below the better ones -> (rate, usual rate)."""
    if len(rates) < 2 or not any("name" in fact for fact in facts):
        return {}
    usual = upper_quarter(rates.values())
    return {key: (rate, usual) for key, rate in rates.items() if rate < SLOW_LINK * usual}


def _kind(fact: Mapping) -> str:
    return fact.get("name", "CPU")


def _reasons(fact: Mapping) -> str:
    reasons = (fact.get("loaded_health") or {}).get("reasons")
    return f" ({', '.join(reasons)})" if reasons else ""
