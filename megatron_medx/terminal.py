"""The two places where text leaves the command line: answers on stdout, complaints on stderr.

Plain text, so that a pipe or a log file gets what the screen gets.
"""

import os
import signal
import sys


def say(text: str = "") -> None:
    """Write a line to stdout.

    Raises:
        SystemExit: nobody reads it any more, as after `| head`; with the code that a shell gives for SIGPIPE.
    """
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # what is left in the buffer would be flushed at exit and complain once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None


def complain(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
