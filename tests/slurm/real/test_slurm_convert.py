"""slurm/convert.sh on a real Slurm: it converts and verifies, and a job that is requeued goes on where it stood."""

import re
import time
from pathlib import Path

import psutil
import pytest
from slurm_jobs import PATIENCE_S

pytestmark = pytest.mark.slurm

SHARDS = ("--shard-size", "8KB", "--workers", "1")
"""Some eighty files, so that a conversion has a middle; one process, so that it can be held there."""

EARLY = 3
"""Finished files after which it is held."""


def test_it_converts_verifies_and_goes_on_after_a_requeue(trained, submit, tmp_path):
    _, run = trained
    words = ("--cpus-per-task=2", "--time=10", "slurm/convert.sh", "to-hf", run / "checkpoints")
    held = submit(*words, tmp_path / "held", *SHARDS)
    hold_in_the_middle(held, tmp_path / "held")
    held.slurm("scontrol", "requeue", held.number)
    held.wait_until(lambda facts: facts["Restarts"] == "1", "its requeue")
    undisturbed = submit(*words, tmp_path / "hf", *SHARDS)  # while the other waits for its second start

    undisturbed.succeeded()
    facts = held.succeeded()
    assert facts["Restarts"] == "1"
    (num_kept,) = re.findall(r"an earlier attempt finished (\d+) files; this one goes on", held.said())
    assert EARLY <= int(num_kept) < len(weights(tmp_path / "hf")), held.said()
    assert "earlier attempt" not in undisturbed.said()
    for job in (undisturbed, held):
        assert job.said().count('"bit_equal": true') == 1, job.said()
    assert weights(tmp_path / "held") == weights(tmp_path / "hf")
    assert not (tmp_path / "held.partial").exists()


def hold_in_the_middle(job, out: Path) -> None:
    """Stop the converting process (SIGSTOP) once it has finished some files."""
    finished, deadline, process = out.with_name(f"{out.name}.partial") / "finished", time.monotonic() + PATIENCE_S, None
    while len(list(finished.glob("*.json"))) < EARLY:
        process = process or process_of(job)  # found while it loads torch: files come every few milliseconds
        assert time.monotonic() < deadline, f"no conversion in {PATIENCE_S} s; the log:\n{job.said()}"
        time.sleep(0.001)
    process.suspend()
    assert not out.exists(), "the conversion was over before it could be held"


def process_of(job) -> psutil.Process | None:
    """The Python that is the job's task."""
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if "convert" in words and "python" in words[0] and process.environ().get("SLURM_JOB_ID") == job.number:
                return process
        except psutil.Error:  # ended meanwhile
            continue
    return None


def weights(folder: Path) -> dict[str, bytes]:
    """Name -> content of the files of weights."""
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
