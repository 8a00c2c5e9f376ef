"""What the exit codes of all ranks mean together."""

import subprocess
import sys

import pytest

from megatron_medx.run_folder.events import AGAIN, INTERRUPTED
from megatron_medx.training.local_ranks import judge


@pytest.mark.parametrize(
    ("codes", "code", "silent"),
    [
        ([0, 0], 0, ()),
        ([INTERRUPTED, INTERRUPTED], INTERRUPTED, ()),
        ([INTERRUPTED, -9], INTERRUPTED, ()),
        ([AGAIN, AGAIN], AGAIN, ()),
        ([AGAIN, None, AGAIN], AGAIN, (1,)),
        ([1, AGAIN], AGAIN, ()),
        ([0, None], 0, (1,)),
    ],
)
def test_codes_on_which_ranks_agree_are_those_of_the_launch(tmp_path, codes, code, silent):
    ending = judge(codes, tmp_path)
    assert (ending.code, ending.silent) == (code, silent)


def test_a_killed_rank_is_to_blame_and_not_the_one_that_lost_it(tmp_path, capsys):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank_0.log").write_text("RuntimeError: Connection closed by peer\n")
    ending = judge([1, -9], tmp_path)
    assert (ending.code, ending.rank, ending.rank_code, ending.why) == (1, 1, -9, "killed by SIGKILL")
    assert "rank 1 ended with code -9" in capsys.readouterr().err


def test_a_defect_is_told_with_the_last_line_of_its_log(tmp_path, capsys):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank_1.log").write_text("Traceback\nZeroDivisionError: division by zero\n\n")
    ending = judge([None, 1], tmp_path)
    assert (ending.rank, ending.why, ending.silent) == (1, "ZeroDivisionError: division by zero", (0,))
    assert "division by zero" in capsys.readouterr().err
    assert judge([3], tmp_path).why == "its log is empty"


def test_what_a_user_can_mend_is_told_in_the_words_of_the_error(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "error.txt").write_text("found:  no space left\nneeded: room\n")
    ending = judge([1, 2], tmp_path)
    assert (ending.code, ending.rank, ending.why) == (2, 1, "no space left")


PASSING_ON = """
import os, signal, subprocess, sys, threading
from megatron_medx.training.interruption import SIGNALS
from megatron_medx.training.local_ranks import _wait, receiving

signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
rank = subprocess.Popen(
    [sys.executable, "-c", "import signal; print(signal.sigwait([15]), flush=True); signal.sigwait([15])"],
    stdout=subprocess.PIPE,
)
signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

def once_more():
    rank.stdout.readline()  # it has got the first one
    os.kill(os.getpid(), int(sys.argv[1]))

with receiving() as received:
    threading.Thread(target=once_more, daemon=True).start()  # also a thread without a mask, as libraries have
    os.kill(os.getpid(), signal.SIGTERM)
    try:
        _wait([rank], received)
    finally:
        rank.kill()
"""


def test_a_signal_is_passed_on_and_a_second_sigterm_ends_everything_at_once():
    run = subprocess.run([sys.executable, "-c", PASSING_ON, "15"], text=True, capture_output=True, timeout=60)
    assert run.returncode == 143, run.stderr
    assert run.stdout == "SIGTERM: the ranks save and leave after this step\n"
