"""The two places where text leaves the command line: answers on stdout, complaints on stderr.

Plain text, so that a pipe or a log file gets what the screen gets.
"""

import sys


def say(text: str = "") -> None:
    """Write a line to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
