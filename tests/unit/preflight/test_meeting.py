"""The store in which tasks meet: gathering with a limit, and what is said when it cannot be had."""

import socket
import threading

import pytest
import torch.distributed as dist

from megatron_medx.errors import ParallelismError
from megatron_medx.preflight.meeting import Meeting, connect, open_store
from megatron_medx.preflight.place import place_of

ALONE = place_of({}, "here")


def meetings(size):
    store = dist.HashStore()
    return [Meeting(store, rank, size) for rank in range(size)]


def test_facts_of_all_ranks_are_gathered():
    first, second = meetings(2)
    first.post("host", {"a": 1})
    threading.Timer(0.1, second.post, ("host", {"a": 2})).start()
    assert first.gather("host", 20.0, lambda found: False) == {0: {"a": 1}, 1: {"a": 2}}


def test_after_the_limit_there_is_what_came():
    first, _ = meetings(2)
    first.post("host", {"a": 1})
    first.doing("[3, 'a sum']")
    assert first.gather("host", 0.2, lambda found: False) == {0: {"a": 1}}
    assert first.last_doing(0) == "[3, 'a sum']" and first.last_doing(1) == ""


def test_a_rule_may_end_the_wait():
    first, second = meetings(3)[:2]
    first.post("host", {"failed": "x"})
    second.post("host", {})
    assert len(first.gather("host", 60.0, lambda found: len(found) == 2)) == 2


def test_a_word_is_waited_for_and_its_lack_is_an_error():
    first, second = meetings(2)
    first.tell("host", "go")
    assert second.word("host", 5.0) == "go"
    with pytest.raises(RuntimeError):
        second.word("other", 0.1)


def test_two_connections_share_what_is_posted():
    store, port = open_store(ALONE)
    other = connect(ALONE, "127.0.0.1", port, 5.0)
    Meeting(other, 1, 2).post("host", {"a": 1})
    assert Meeting(store, 0, 2).peek("host/1") == '{"a": 1}'


def test_a_port_that_is_taken_is_said():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        place = place_of({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "MASTER_PORT": str(port + 10_000)}, "here")
        with pytest.raises(ParallelismError, match=f"port {port} of here cannot be used"):
            open_store(place)


def test_a_host_that_cannot_be_looked_up_is_said():
    with pytest.raises(ParallelismError, match=r"here does not reach rank 0 at no.such.host.invalid:5000 within 0 s"):
        connect(ALONE, "no.such.host.invalid", 5000, 0.0)
