"""Hosts of an invented cluster of 64: each fault is found, laid to the right host, and nothing else is."""

import pytest
from invented_cluster import cluster, healthy_gpu, without_gpus

from megatron_medx.preflight import judge_hosts

NEEDS = {"run folder": 10**11, "/tmp": 10**9, "/dev/shm": 10**10}
GIB = 2**30


def judge(facts):
    """All findings of the second phase and of the shared files."""
    return [
        *judge_hosts.gpus(facts),
        *judge_hosts.gpu_health(facts),
        *judge_hosts.versions(facts),
        *judge_hosts.disks(facts, NEEDS),
        *judge_hosts.limits(facts),
        *judge_hosts.clocks(facts),
        *judge_hosts.shared_files(facts),
    ]


def only(findings):
    (finding,) = findings
    return finding


def on(facts, host, number=0):
    """The facts of one task of a host."""
    return next(fact for fact in facts if fact["host"] == host and fact["local_rank"] == number)


@pytest.mark.parametrize("num_hosts", [1, 2, 64])
def test_a_healthy_cluster_has_no_findings(num_hosts):
    assert judge(cluster(num_hosts)) == []
    assert judge(without_gpus(cluster(num_hosts))) == []


def test_a_host_with_seven_gpus():
    facts = cluster()
    for fact in facts:
        if fact["host"] == "node7":
            fact["num_gpus"] = 7
    for key in ("name", "memory_bytes", "health"):
        del on(facts, "node7", 7)[key]
    finding = only(judge(facts))
    assert finding.stops and finding.blocks and finding.hosts == ("node7",)
    assert "node7: 7 GPUs visible to each of 8 tasks" in finding.found and "--exclude=node7" in finding.do


def test_a_host_whose_gpus_are_all_gone():
    facts = cluster()
    for number in range(8):
        fact = on(facts, "node9", number)
        fact["num_gpus"] = 0
        for key in ("name", "memory_bytes", "health"):
            del fact[key]
    finding = only(judge(facts))
    assert finding.blocks and finding.hosts == ("node9",) and "0 GPUs visible" in finding.found


def test_tasks_that_see_one_gpu_each_are_told_of_the_option():
    facts = cluster(2)
    for fact in facts:
        fact["num_gpus"] = 1
    assert "--gpus-per-task" in only(judge_hosts.gpus(facts)).do


def test_more_gpus_than_tasks_are_said():
    facts = cluster(2, gpus=4)
    for fact in facts:
        fact["num_gpus"] = 8
    finding = only(judge_hosts.gpus(facts))
    assert not finding.stops and "--ntasks-per-node=8" in finding.do and finding.hosts == ("node1", "node2")


def test_a_driver_without_a_gpu_that_torch_sees_is_no_machine_without_gpus():
    facts = [fact | {"expects_gpus": True} for fact in without_gpus(cluster(2))]
    finding = only(judge_hosts.gpus(facts))
    assert finding.blocks and "torch sees no GPU" in finding.found


def test_another_kind_of_gpu():
    facts = cluster()
    for number in range(8):
        on(facts, "node3", number).update(name="NVIDIA A100-SXM4-80GB")
    finding = only(judge(facts))
    assert finding.hosts == ("node3",) and "A100" in finding.found and "H100" in finding.needed


def test_less_memory_than_the_others():
    facts = cluster()
    on(facts, "node3", 5)["memory_bytes"] = 40 * GIB
    assert "of 40 GiB" in only(judge(facts)).found


@pytest.mark.parametrize(
    ("changes", "text", "stops"),
    [
        ({"uncorrected_ecc": 2}, "2 uncorrected ECC errors", True),
        ({"remap_pending": 1}, "remapping of memory rows pending", True),
        ({"remap_failed": 1}, "remapping of memory rows failed", True),
        ({"used_mib": 30000}, "30000 MiB in use", True),
        ({"uncorrected_ecc": None, "remap_pending": None, "used_mib": 600}, "", False),
    ],
)
def test_health_of_one_gpu(changes, text, stops):
    facts = cluster()
    on(facts, "node12", 3)["health"] = healthy_gpu(**changes)
    findings = judge(facts)
    if not text:
        assert findings == []
        return
    assert text in only(findings).found and "node12, GPU 3" in findings[0].found
    assert findings[0].stops is stops and findings[0].hosts == ("node12",)


def test_an_nvidia_smi_that_does_not_answer_is_said():
    facts = cluster()
    on(facts, "node12", 3)["health"] = {"error": "nvidia-smi: timed out after 20 seconds"}
    finding = only(judge(facts))
    assert not finding.stops and "node12, GPU 3: nvidia-smi: timed out" in finding.found


def test_no_nvidia_smi_anywhere_is_one_finding():
    facts = cluster()
    for fact in facts:
        fact["health"] = {"error": "nvidia-smi: no such program"}
    finding = only(judge(facts))
    assert "and 504 more: nvidia-smi: no such program" in finding.found and len(finding.hosts) == 64


def test_another_driver_on_two_hosts_is_one_finding():
    facts = cluster()
    for host in ("node5", "node6"):
        on(facts, host)["health"] = healthy_gpu(driver="550.54.15")
    finding = only(judge(facts))
    assert finding.stops and finding.hosts == ("node5", "node6")
    assert "node5, node6: driver 550.54.15" in finding.found and "580.65.06" in finding.needed


def test_another_nccl_and_a_package_that_is_missing():
    facts = cluster()
    on(facts, "node5")["versions"]["NCCL"] = "2.21.5"
    del on(facts, "node8")["versions"]["commit"]
    found = [finding.found for finding in judge(facts)]
    assert found == ["node5: NCCL 2.21.5", "node8: commit none"]


def test_full_disks():
    facts = cluster()
    on(facts, "node2")["disks"]["/tmp"]["free_bytes"] = 10**8
    on(facts, "node4")["disks"]["/dev/shm"]["free_bytes"] = 64 * 2**20
    first, second = judge(facts)
    assert first.stops and first.hosts == ("node2",) and "0.1 GB free for /tmp" in first.found
    assert not second.stops and second.hosts == ("node4",) and "/dev/shm" in second.found


def test_a_run_folder_without_room_for_a_checkpoint():
    facts = cluster(4)
    for fact in facts:
        if "disks" in fact:
            fact["disks"]["run folder"]["free_bytes"] = 10**9
    finding = only(judge(facts))
    assert finding.stops and "one more checkpoint" in finding.needed and "exclude" not in finding.do


def test_a_clock_that_is_off_is_said():
    facts = cluster()
    for number in range(8):
        on(facts, "node33", number)["clock_s"] -= 12.0
    finding = only(judge(facts))
    assert not finding.stops and finding.hosts == ("node33",) and "-12.0 s" in finding.found


def test_low_limits_are_said():
    facts = cluster()
    on(facts, "node1")["open_files"] = 1024
    on(facts, "node2")["locked_bytes"] = 65536
    first, second = judge(facts)
    assert not first.stops and "1024 open files" in first.found and first.hosts == ("node1",)
    assert not second.stops and "65536 bytes of locked memory" in second.found and second.hosts == ("node2",)
    on(facts, "node2")["infiniband"] = []
    assert len(judge(facts)) == 1, "without InfiniBand nothing needs to be locked"


def test_a_host_that_is_cut_off_from_the_shared_files_is_one_finding():
    facts = cluster()
    others = [f"node{number}" for number in range(1, 65) if number != 20]
    on(facts, "node20")["wrong_files"] = dict.fromkeys(others, "missing")
    for host in others:
        on(facts, host)["wrong_files"] = {"node20": "missing"}
    finding = only(judge(facts))
    assert finding.stops and finding.hosts == ("node20",)
    assert "node20 and node1, " in finding.found and "and 55 more" in finding.found


def test_of_two_hosts_nobody_says_which_is_cut_off():
    facts = cluster(2)
    on(facts, "node1")["wrong_files"] = {"node2": "not what node2 wrote (0 bytes)"}
    assert only(judge(facts)).hosts == ("node1", "node2")


LAYOUT = {f"node{number}": 8 for number in range(1, 65)}


def test_missing_tasks_are_named_by_host():
    facts = [fact for fact in cluster() if fact["host"] != "node40"]
    finding = only(judge_hosts.missing_tasks(facts, 512, LAYOUT, 60.0))
    assert finding.blocks and finding.hosts == ("node40",) and "node40: 0 of 8" in finding.found
    assert "8 of 512 tasks" in finding.found and "within 60 s" in finding.found


def test_missing_tasks_without_a_layout_are_named_by_rank():
    facts = [fact for fact in cluster(2) if fact["rank"] != 11]
    finding = only(judge_hosts.missing_tasks(facts, 16, {}, 60.0))
    assert "rank 11" in finding.found and finding.hosts == ()


def test_nobody_missing():
    assert judge_hosts.missing_tasks(cluster(), 512, LAYOUT, 60.0) == []
