"""What happened to a run, told from crafted events: starts, repeated steps, saves, time left, hangs, rollbacks."""

import pytest

from megatron_medx.run_folder.events import read
from megatron_medx.status.history import launches


def test_starts_and_repeated_steps(run):
    """To step 17 on 2 ranks; from 10 on 4, hung in step 24; from 20 on 2, no step yet."""
    run.event("job_started", 1, job="12", restart=0, tasks=2, hosts=["a"])
    run.event("launched", 2, ranks=2, hosts=["a"], resumed_from=None)
    run.event("first_step", 3, step=1, start_s=1.25)
    run.event("saved", 10, step=10, save_s=0.5, bytes=700)
    run.event("failed", 17, step=17, code=-9, rank=1, why="killed by signal 9")
    run.event("job_ended", 18, job="12", code=1, why="failed")
    run.event("launched", 20, ranks=4, hosts=["a"], resumed_from=10)
    run.event("first_step", 21, step=11, start_s=1.0)
    run.event("saved", 30, step=20, save_s=0.5, bytes=700)
    run.event("hang", 40, step=24, waited_s=300.0, median_s=0.5, rank=2, host="b")
    run.event("failed", 41, step=23, code=76, rank=2, why="it hung")
    run.event("launched", 50, ranks=2, hosts=["a", "b"], resumed_from=20)
    run.metrics(23, 45)  # of the start before: this one has not done a step
    report = run.status(55)
    found = report["launches"]
    assert [entry["job"] for entry in found] == ["12", None, None]
    assert [entry["num_ranks"] for entry in found] == [2, 4, 2]
    assert [entry["resumed_from"] for entry in found] == [None, 10, 20]
    assert [entry["first_step"] for entry in found] == [1, 11, None]
    assert [entry["last_step"] for entry in found] == [17, 23, None]
    assert [entry["steps_repeated"] for entry in found] == [None, 7, 3]
    assert [entry["how"] for entry in found] == ["failed", "hang", None]
    assert run.row("starts", 55).splitlines() == [
        "2 restarts: 1 failed, 1 hung; 10 steps repeated; first started 2023-11-14 22:13:22 UTC",
        "2023-11-14 22:13:22 UTC: job 12, 2 ranks on a, new, first step after 1 s, to step 17, failed: rank 1, code "
        "-9: killed by signal 9",
        "2023-11-14 22:13:40 UTC: 4 ranks on a, from step 10, first step after 1 s, to step 23, 7 steps repeated, "
        "step 24 hung for 300 s, rank 2 on b",
        "2023-11-14 22:14:10 UTC: 2 ranks on a, b, from step 20, 3 steps repeated",
    ]
    run.event("first_step", 60, step=21, start_s=10.0)
    run.metrics(25, 65)
    assert run.status(66)["launches"][-1]["last_step"] == 25


def test_a_start_without_a_checkpoint_repeats_all(run):
    run.event("launched", 2, ranks=2, hosts=["a"], resumed_from=None)
    run.event("first_step", 3, step=1, start_s=1.0)
    run.event("bad_step", 8, step=7, what="loss", loss="nan", applied=False)
    run.event("launched", 20, ranks=2, hosts=["a"], resumed_from=None)
    assert launches(read(run.folder), None)[1]["steps_repeated"] == 7
    assert run.row("starts", 30).startswith("1 restart: 1 ended without a word; at least 7 steps repeated")


def test_a_signal_and_a_rollback_end_a_start(run):
    run.event("launched", 2, ranks=2, hosts=["a"], resumed_from=None)
    run.event("signal", 5, signal="SIGUSR1", rank=0, host="a", step=8)
    run.event("interrupted", 6, step=8, signal="SIGUSR1")
    run.event("launched", 20, ranks=2, hosts=["a"], resumed_from=8)
    run.event("rolled_back", 30, to_step=8, from_step=15, first_row=64, last_row=87, why="3 bad steps in succession")
    run.event("launched", 40, ranks=2, hosts=["a"], resumed_from=8)
    assert [entry["steps_repeated"] for entry in run.status(50)["launches"]] == [None, 0, 7]
    assert run.row("starts", 50).startswith("2 restarts: 1 saved on a signal, 1 rolled back; 7 steps repeated")
    assert run.row("signals", 50) == "1, the last SIGUSR1 at step 8, seen by rank 0 on a, 2023-11-14 22:13:25 UTC"
    assert run.row("rollbacks", 50).splitlines() == [
        "1, 24 rows left out",
        "2023-11-14 22:13:50 UTC: from step 15 to 8, rows 64 to 87 are left out: 3 bad steps in succession",
    ]


def test_time_left_counts_saves_once_two_are_told_of(run):
    """0.5 s a step; from step 1 to 11 and to 21 ten seconds each with their saves: 1 s a step."""
    run.event("launched", 2, ranks=2, hosts=["a"], resumed_from=None)
    run.event("first_step", 3, step=1, start_s=1.0)
    run.metrics(60, 100)
    assert run.status(101)["left"] == {"time_s": 180 * 0.5, "with_saves": False}
    assert run.row("step", 101) == "60 of 240 (25.0%), 1 min 30 s left without saves and validation"
    run.event("saved", 13, step=11, save_s=4.0, bytes=7)
    run.event("saved", 23, step=21, save_s=6.0, bytes=7)
    run.date("metrics.jsonl", 100)
    report = run.status(101)
    assert report["left"] == {"time_s": 180.0, "with_saves": True}
    assert report["saves"]["num"] == 2 and report["saves"]["median_s"] == 5.0
    assert "2 saves so far, 5 s each (median), the last of step 21" in run.row("checkpoints", 101)
    run.event("launched", 110, ranks=4, hosts=["a"], resumed_from=21)  # another speed from here on
    run.event("first_step", 112, step=22, start_s=1.0)
    assert run.status(113)["left"]["with_saves"] is False


def test_a_save_is_told_beside_its_checkpoint(run):
    run.metrics(60, 100)
    run.checkpoint(40, 90)
    run.event("saved", 91, step=40, save_s=0.25, bytes=702)
    (entry,) = run.status(100)["checkpoints"]["last"]
    assert entry["save_s"] == 0.25 and "whole, no checksums, saved in 0.25 s" in run.row("checkpoints", 100)


def test_the_host_of_most_hangs_is_named_first(run):
    for second, host in enumerate(("b", "c", "b")):
        run.event("hang", second, step=7, waited_s=300.0, median_s=0.5, rank=3, host=host)
    assert run.row("hangs", 50) == (
        "3 (2 on b, 1 on c); the last at step 7: waited 300 s, a step takes 0.5 s; logs/stacks_rank_3.txt and its like"
    )


def test_a_save_that_failed_needs_a_person_until_one_succeeds(run):
    run.event("saved", 5, step=20, save_s=1.0, bytes=7)
    run.event("save_failed", 10, step=40, why="No space left on device")
    assert run.row("needs you", 11) == "step 40 was not saved: No space left on device"
    run.event("saved", 20, step=60, save_s=1.0, bytes=7)
    assert run.row("needs you", 21) is None
    assert run.row("failed saves", 21).startswith("1, the last of step 40: No space left on device")


def test_a_damaged_checkpoint_needs_a_person(run):
    run.event("checkpoint_damaged", 5, step=40, problems=["x.distcp: other bytes"], moved_to="damaged-iter_0000040")
    said = "checkpoint of step 40 was damaged (x.distcp: other bytes), now damaged-iter_0000040"
    assert run.row("needs you", 6) == said


@pytest.mark.parametrize(
    ("hosts", "text"),
    [
        (["a", "b", "c", "d"], "2 ranks on a, b, c, d"),
        (["a", "b", "c", "d", "e"], "2 ranks on a, b and 3 more hosts"),
        ("node[1-8]", "2 ranks on node[1-8]"),
        (None, "2 ranks, new"),
    ],
)
def test_hosts_are_named_briefly(run, hosts, text):
    run.event("launched", 2, ranks=2, hosts=hosts, resumed_from=None)
    assert text in run.row("starts", 3)


def test_jobs_and_their_requeues(run):
    for restart in range(3):
        run.event("job_started", 100 * restart, job="12", restart=restart, tasks=4, hosts=["a", "b"])
        if restart < 2:
            run.event("job_requeued", 100 * restart + 50, job="12", why="its time limit")
    assert run.row("job", 250) == (
        "12, start 3 of it, 4 tasks on a, b, since 2023-11-14 22:16:40 UTC; 3 starts of jobs, 2 requeues"
    )
    found = run.status(250)["jobs"]
    assert [entry["requeued"] and entry["requeued"]["why"] for entry in found] == ["its time limit"] * 2 + [None]


def test_changes_that_a_person_accepted_are_told(run):
    changes = [f"optimizer.lr {number} in the folder and 1 asked for" for number in range(5)]
    run.event("job_started", 1, job="12", restart=0, tasks=4, hosts="node[1-2]", accepted=changes)
    assert "4 tasks on node[1-2]" in run.row("job", 2) and "accepted: optimizer.lr 0" in run.row("job", 2)
    assert run.row("job", 2).endswith("optimizer.lr 2 in the folder and 1 asked for and 2 more")
