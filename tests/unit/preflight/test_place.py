"""Where a task stands: Slurm's variables, lists of hosts, ports."""

import pytest

from megatron_medx.preflight.place import expand_hosts, expand_tasks, meeting_port, place_of
from megatron_medx.preflight.steps import rounds

TASK = {
    "SLURM_PROCID": "9",
    "SLURM_NTASKS": "20",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "node[1-3]",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2),4",
    "SLURMD_NODENAME": "node2",
}


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a", ["a"]),
        ("a,b-1", ["a", "b-1"]),
        ("a[1-3,07],b", ["a1", "a2", "a3", "a07", "b"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("r[1-2]n[1,3].hpc", ["r1n1.hpc", "r1n3.hpc", "r2n1.hpc", "r2n3.hpc"]),
        ("", []),
    ],
)
def test_lists_of_hosts(text, hosts):
    assert expand_hosts(text) == hosts


def test_lists_of_tasks():
    assert expand_tasks("8(x2),4") == [8, 8, 4]
    assert expand_tasks("") == []


def test_a_task_of_srun():
    place = place_of(TASK, "vm")
    assert (place.rank, place.size, place.local_rank, place.host) == (9, 20, 1, "node2")
    assert place.tasks_by_host == {"node1": 8, "node2": 8, "node3": 4}
    assert place.address == "node1" and place.attempt == "4711.0.2"
    assert place_of(TASK | {"MASTER_ADDR": "10.0.0.1"}, "vm").address == "10.0.0.1"
    assert place_of(TASK | {"SLURM_RESTART_COUNT": "3"}, "vm").attempt == "4711.3.2"


def test_a_layout_that_does_not_add_up_is_not_used():
    assert place_of(TASK | {"SLURM_NTASKS": "24"}, "vm").tasks_by_host == {}


def test_alone_without_slurm():
    place = place_of({}, "laptop")
    assert (place.rank, place.size, place.host, place.port) == (0, 1, "laptop", 0)


def test_the_port_is_not_that_of_training():
    assert meeting_port({"SLURM_JOB_ID": "4711"}) == 14711
    assert meeting_port({"SLURM_JOB_ID": "1234567"}) == 14567
    assert meeting_port({"SLURM_JOB_ID": "4711", "MASTER_PORT": "29500"}) == 19500
    assert meeting_port({"MASTER_PORT": "6000"}) == 6001


@pytest.mark.parametrize("num_hosts", range(1, 9))
def test_links_form_a_circle_and_no_host_is_twice_in_a_round(num_hosts):
    links = [link for one in rounds(num_hosts) for link in one]
    if num_hosts > 2:
        assert sorted(links) == sorted({tuple(sorted((a, (a + 1) % num_hosts))) for a in range(num_hosts)})
    else:
        assert links == [(0, 1)] * (num_hosts == 2)
    for one in rounds(num_hosts):
        hosts = [host for link in one for host in link]
        assert len(hosts) == len(set(hosts))
