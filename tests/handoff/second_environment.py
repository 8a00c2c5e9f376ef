"""Exports run in transformers 5, which is installed, and in 4.57, which is laid over it in a folder of its own."""

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
PINS = Path(__file__).with_name("transformers_4.txt")
FOLDER = REPOSITORY / ".venv-transformers-4"
"""Kept between sessions; git ignores it."""


def run_in_version_5(exports: Mapping[str, Path], folder: Path) -> dict:
    """What transformers_run.py finds, by name of the export; also `version` and, under `said`, what it printed."""
    return _run(exports, folder / "five.pt", {})


def run_in_version_4(exports: Mapping[str, Path], folder: Path) -> dict:
    """The same in the second environment, which is installed if it is not there."""
    _install()
    return _run(exports, folder / "four.pt", {"PYTHONPATH": str(FOLDER)})


def _run(exports: Mapping[str, Path], out: Path, environment: dict[str, str]) -> dict:
    program = Path(__file__).with_name("transformers_run.py")
    command = [sys.executable, str(program), str(out), *map(str, exports.values())]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = torch.load(out)
    return {name: found[str(path)] for name, path in exports.items()} | {
        "version": found["version"],
        "said": done.stderr,
    }


def _install() -> None:
    """Put the pinned packages into a folder, once for all sessions; torch comes from this environment."""
    stamp = FOLDER / f".installed-{hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]}"
    FOLDER.mkdir(exist_ok=True)
    with open(FOLDER / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two workers of pytest
        if stamp.is_file():
            return
        words = ["install", "--quiet", "--no-deps", "--upgrade", "--target", str(FOLDER), "--requirement", str(PINS)]
        done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.fail(f"{PINS} could not be installed (without a network: -m 'not slow')\n{done.stderr[-500:]}")
        stamp.touch()
