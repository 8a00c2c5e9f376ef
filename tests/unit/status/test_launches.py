"""Restarts and repeated steps, told from crafted logs."""

from crafted_run import started

from megatron_medx.status.launches import launches
from megatron_medx.status.lines import status_lines


def test_restarts_and_repeated_steps_across_grids(run):
    """2 ranks to step 17, from 10 on 4 ranks to 23, from 20 on 2 ranks and no step yet."""
    rank_0 = started(2, "10:00:00") + started(4, "11:00:00", loaded=10) + started(2, "12:00:00", loaded=20)
    rank_1 = started(2, "10:00:00", last_step=17) + started(4, "11:00:00") + started(2, "12:00:00")
    for rank, text in ((0, rank_0), (1, rank_1), (3, started(4, "11:00:00", last_step=23))):
        run.write(f"logs/rank_{rank}.log", text, 50)
    found = launches(run.folder)
    assert [entry["num_ranks"] for entry in found] == [2, 4, 2]
    assert [entry["resumed_from"] for entry in found] == [None, 10, 20]
    assert [entry["last_step"] for entry in found] == [17, 23, None]
    assert [entry["steps_repeated"] for entry in found] == [None, 7, 3]
    (line,) = (line for line in status_lines(run.status(60)) if line.startswith("restarts"))
    assert "2, 10 steps repeated; the last 2026-11-22 12:00:00 from step 20 on 2 ranks" in line


def test_restarts_that_the_logs_do_not_tell_all_of(run):
    run.write("logs/rank_0.log", "=== started 2026-11-22T10:00:00 ===\n" * 2, 50)
    assert [entry["steps_repeated"] for entry in launches(run.folder)] == [None, None]
    assert any("0 steps repeated as far as the logs tell (0 of 1)" in line for line in status_lines(run.status(60)))
    run.write("logs/rank_0.log", "", 50)
    assert launches(run.folder) == []


def test_a_start_from_another_run_is_no_resume(run):
    run.write("logs/rank_0.log", started(1, "10:00:00", loaded=240), 50)
    assert launches(run.folder)[0]["resumed_from"] is None


def test_steps_of_the_right_start_are_compared(run):
    """1 rank to step 7, from 5 on 2 ranks to 9: rank 1 has no part of the first start."""
    run.write("logs/rank_0.log", started(1, "10:00:00", last_step=7) + started(2, "11:00:00", loaded=5), 50)
    run.write("logs/rank_1.log", started(2, "11:00:00", last_step=9), 50)
    assert [entry["last_step"] for entry in launches(run.folder)] == [7, 9]
    assert launches(run.folder)[1]["steps_repeated"] == 2


def test_a_start_behind_half_a_line_of_a_killed_process_is_found(run):
    run.write("logs/rank_0.log", started(1, "10:00:00", last_step=7) + " [2026-" + started(1, "11:00:00", loaded=5), 50)
    assert [entry["steps_repeated"] for entry in launches(run.folder)] == [None, 2]
