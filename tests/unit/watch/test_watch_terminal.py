"""`medx watch` in a terminal of its own: keys, signals, growing and vanishing runs, and how it leaves the terminal."""

import fcntl
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from megatron_medx.watch.terminal_screen import ENTER, LEAVE

PATIENCE_S = 30.0
"""Until something is on screen: far more than it takes on a machine with other work."""


class Terminal:
    """A process that believes to be in a terminal of that size."""

    def __init__(self, *words, columns=80, rows=24, **environment):
        self.near, self.far = pty.openpty()
        self.resize(columns, rows)
        self.settings = termios.tcgetattr(self.far)
        self.said = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "megatron_medx.cli", "watch", *map(str, words)],
            stdin=self.far,
            stdout=self.far,
            stderr=self.far,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm-256color"} | environment,
        )

    def resize(self, columns, rows):
        fcntl.ioctl(self.near, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys):
        """Returns where in `said` stands what follows."""
        os.write(self.near, keys.encode())
        return len(self.said)

    def until(self, text, begin=0):
        """Read until it was said behind `begin`."""
        end_s = time.monotonic() + PATIENCE_S
        while text not in self.said[begin:]:
            assert time.monotonic() < end_s, f"{text!r} was not said in {self.said[begin:]!r}"
            self._read()

    def _read(self):
        if select.select([self.near], [], [], 0.1)[0]:
            self.said += os.read(self.near, 65536).decode(errors="replace")

    def end(self):
        """Its code, after all that it says."""
        code = self.process.wait(PATIENCE_S)
        while select.select([self.near], [], [], 0)[0]:
            self._read()
        return code

    def is_restored(self):
        """The alternate screen was left last of all, and lines and echo work as before."""
        return self.said.endswith(LEAVE) and termios.tcgetattr(self.far) == self.settings

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.near)
        os.close(self.far)


@pytest.fixture
def terminal():
    opened = []

    def open_terminal(*words, **options):
        opened.append(Terminal(*words, **options))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


def test_it_draws_and_quits_on_q(terminal, run_folder):
    screen = terminal(run_folder)
    screen.until("q quit")
    assert screen.said.startswith(ENTER) and "loss (nats/token)" in screen.said and "step 2,000 of 2,400" in screen.said
    screen.press("q")
    assert screen.end() == 0 and screen.is_restored()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_the_terminal_as_it_was(terminal, run_folder, number):
    screen = terminal(run_folder)
    screen.until("q quit")
    screen.process.send_signal(number)
    assert screen.end() == 128 + number and screen.is_restored() and "Traceback" not in screen.said


def test_an_exception_leaves_the_terminal_as_it_was(terminal, run_folder, tmp_path):
    """One that nobody thought of, put into the program from outside."""
    (tmp_path / "sitecustomize.py").write_text(
        "import megatron_medx.watch.screen as screen\n"
        "def broken(*args): raise RuntimeError('nobody thought of this')\n"
        "screen.screen_lines = broken\n"
    )
    screen = terminal(run_folder, PYTHONPATH=str(tmp_path))
    assert screen.end() == 1
    assert screen.said.index(LEAVE) < screen.said.index("nobody thought of this")
    assert termios.tcgetattr(screen.far) == screen.settings


def test_definitions_are_one_key_away(terminal, run_folder):
    screen = terminal(run_folder)
    screen.until("q quit")
    begin = screen.press("d")
    screen.until("definitions 1 of", begin)
    begin = screen.press(" ")
    screen.until("definitions 2 of", begin)
    begin = screen.press("?")
    screen.until("c next curve", begin)


def test_curves_and_zoom_change_by_key(terminal, run_folder):
    screen = terminal(run_folder)
    screen.until("q quit")
    begin = screen.press("c")
    screen.until("validation loss", begin)
    begin = screen.press("cc")
    screen.until("learning rate", begin)
    begin = screen.press("z")
    screen.until("1,800", begin)


def test_only_what_changed_is_written_and_new_steps_appear(terminal, run_folder):
    screen = terminal(run_folder, "--every", "0.2")
    screen.until("q quit")
    first = len(screen.said)
    with open(run_folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 2001, "loss": 1.0625, "step_time_s": 11.0, "tokens": 4000000}\n')
    screen.until("step 2,001", first)
    assert len(screen.said) - first < first / 2
    with open(run_folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 2002, "loss"')
    screen.process.send_signal(signal.SIGTERM)
    assert screen.end() == 128 + signal.SIGTERM


def test_a_folder_that_vanishes_is_told_of_and_one_that_comes_back_is_shown(terminal, run_folder, tmp_path):
    screen = terminal(run_folder, "--every", "0.2")
    screen.until("q quit")
    begin = len(screen.said)
    run_folder.rename(tmp_path / "away")
    screen.until("cannot be read: no folder", begin)
    begin = len(screen.said)
    (tmp_path / "away").rename(run_folder)
    screen.until("2,000 of 2,400", begin)
    shutil.rmtree(run_folder)
    screen.press("q")
    assert screen.end() == 0


def test_another_size_is_drawn_at_once(terminal, run_folder):
    screen = terminal(run_folder, "--every", "600")
    screen.until("q quit")
    begin = len(screen.said)
    screen.resize(60, 12)
    screen.process.send_signal(signal.SIGWINCH)  # as the terminal does for its foreground group
    screen.until("\x1b[12;1H", begin)
    assert "\x1b[13;1H" not in screen.said[begin:]


def test_ctrl_z_does_not_leave_a_shell_below_the_screen(terminal, run_folder):
    screen = terminal(run_folder)
    screen.until("q quit")
    screen.process.send_signal(signal.SIGTSTP)
    screen.press("q")
    assert screen.end() == 0


def test_a_terminal_that_cannot_draw_gets_plain_text(terminal, run_folder):
    screen = terminal(run_folder, TERM="dumb")
    assert screen.end() == 0 and "\x1b" not in screen.said and "loss (nats/token)" in screen.said


def test_a_terminal_that_hangs_up_ends_it(terminal, run_folder):
    screen = terminal(run_folder)
    screen.until("q quit")
    os.close(screen.near)
    os.close(screen.far)
    assert screen.process.wait(PATIENCE_S) in (0, 128 + signal.SIGHUP)
    screen.near, screen.far = pty.openpty()  # for `close`
