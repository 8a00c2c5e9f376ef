"""Measurements of an invented cluster of 64 hosts: who is slow or computes wrongly is named, and nobody else."""

import pytest
from invented_cluster import cluster, healthy_gpu, without_gpus

from megatron_medx.preflight import judge_speed


def judge(facts):
    """All findings of measurements."""
    return [
        *judge_speed.products(facts),
        *judge_speed.sums_in_hosts(facts),
        *judge_speed.links(facts),
        *judge_speed.sum_over_all(facts),
    ]


def only(findings):
    (finding,) = findings
    return finding


def slow_link(facts, a, b, gb_s):
    for fact in facts:
        for link in fact["links"]:
            if {fact["host"], link["other"]} == {a, b}:
                link["gb_s"] = gb_s


@pytest.mark.parametrize("num_hosts", [1, 2, 3, 64])
def test_a_healthy_cluster_has_no_findings(num_hosts):
    assert judge(cluster(num_hosts)) == []
    assert judge(without_gpus(cluster(num_hosts))) == []


def test_one_task_alone_has_nothing_to_be_compared_with():
    facts = cluster(1, gpus=1)
    facts[0] |= {"in_host": None, "links": [], "all": None}
    assert judge(facts) == []


@pytest.mark.parametrize(("factor", "stops"), [(1.5, True), (1.2, False)])
def test_a_slow_gpu(factor, stops):
    facts = cluster()
    facts[8 * 16 + 5]["multiply_s"] = 0.00204 * factor
    finding = only(judge(facts))
    assert finding.stops is stops and finding.hosts == ("node17",)
    assert "node17, GPU 5" in finding.found and "x the median" in finding.found


def test_kinds_of_gpus_are_compared_with_their_own():
    facts = cluster(4)
    for fact in facts[16:]:
        fact |= {"name": "NVIDIA A100-SXM4-80GB", "multiply_s": 0.006, "checksum": "beef"}
    assert judge(facts) == []


def test_a_slow_task_without_gpus_is_only_said():
    facts = without_gpus(cluster(2))
    facts[3]["multiply_s"] = 0.05
    finding = only(judge(facts))
    assert not finding.stops and "node1, task 3" in finding.found


def test_another_result_stops():
    facts = cluster()
    facts[100]["checksum"] = "00fe"
    finding = only(judge(facts))
    assert finding.stops and finding.hosts == ("node13",)
    assert "node13, GPU 4: its result is 00fe, that of 511 of 512 is 00ff" in finding.found


def test_a_result_that_changes_stops():
    facts = cluster()
    facts[100]["num_odd"] = 2
    assert "2 repetitions gave another result" in only(judge(facts)).found


@pytest.mark.parametrize(
    ("health", "text", "stops"),
    [
        (healthy_gpu(reasons=["hardware slowdown"]), "hardware slowdown under load", True),
        (healthy_gpu(reasons=["power brake"]), "power brake under load", True),
        (healthy_gpu(reasons=["software thermal slowdown"], temperature_c=88), "88 degrees C", False),
        (healthy_gpu(sm_mhz=345), "345 MHz under load, of at most 1980", True),
    ],
)
def test_a_gpu_that_is_throttled(health, text, stops):
    facts = cluster()
    facts[3]["loaded_health"] = health
    finding = only(judge(facts))
    assert text in finding.found and finding.stops is stops and finding.hosts == ("node1",)


def test_unknown_health_under_load_is_no_finding():
    facts = cluster(2)
    facts[3]["loaded_health"] = {"error": "nvidia-smi: missing"}
    assert judge(facts) == []


def test_a_host_with_slow_links_between_its_gpus():
    facts = cluster()
    for fact in facts:
        if fact["host"] == "node50":
            fact["in_host"]["gb_s"] = 40.0
    finding = only(judge(facts))
    assert finding.stops and finding.hosts == ("node50",) and "40.0 GB/s between its GPUs" in finding.found


def test_a_wrong_sum_inside_a_host():
    facts = cluster()
    facts[8]["in_host"]["is_right"] = False
    finding = only(judge(facts))
    assert finding.stops and finding.hosts == ("node2",) and "inside node2" in finding.found


@pytest.mark.parametrize("num_hosts", [3, 64])
def test_a_host_with_slow_links_to_both_neighbors(num_hosts):
    facts = cluster(num_hosts)
    slow_link(facts, "node1", "node2", 22.0)
    slow_link(facts, "node2", "node3", 23.0)
    finding = only(judge(facts))
    assert finding.stops and finding.hosts == ("node2",)
    assert "22.0 GB/s to node1 and node3" in finding.found


def test_one_slow_link_names_both_ends():
    facts = cluster()
    slow_link(facts, "node30", "node31", 10.0)
    finding = only(judge(facts))
    assert finding.hosts == ("node30", "node31") and "10.0 GB/s between node30 and node31" in finding.found


def test_one_slow_rail_of_a_link_counts():
    facts = cluster()
    facts[8 * 9 + 3]["links"][1]["gb_s"] = 5.0
    assert only(judge(facts)).hosts == ("node10", "node11")


def test_rates_without_gpus_are_not_compared():
    facts = without_gpus(cluster(4))
    slow_link(facts, "node1", "node2", 1.0)
    facts[0]["in_host"]["gb_s"] = 1.0
    assert judge(facts) == []


def test_wrong_sums_between_hosts_and_over_all():
    facts = cluster(4)
    facts[8]["links"][0]["is_right"] = False
    assert only(judge(facts)).hosts == ("node1", "node2")
    facts = cluster(4)
    facts[8]["all"]["is_right"] = False
    finding = only(judge(facts))
    assert finding.stops and finding.hosts == () and "NCCL_ALGO=Ring" in finding.do
