"""Where Chromium is: root on a Debian installs it by apt, elsewhere what needs it is skipped with the reason."""

import os
import shutil
import subprocess

import pytest

PATIENCE_MS = 120_000
"""Until a page is opened and drawn: on a machine with other work that takes longer than Playwright's 30 s."""


def find_chromium() -> str:
    """Path of the program; skips where this machine cannot have one."""
    if found := shutil.which("chromium"):
        return found
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip("no chromium, and only root on a Debian can install it: apt-get install chromium")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        done = subprocess.run(["apt-get", "-qq", *words], env=environment, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no chromium, and apt-get {words[0]} failed: {done.stderr.strip()[-500:]}")
    return shutil.which("chromium")
