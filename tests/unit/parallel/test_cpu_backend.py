"""The CPU backend: enough for a whole run, and nothing in it that megatron-core does not ask for."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_medx.parallel import cpu
from megatron_medx.training.launch import free_port, prepare_folder, rank_environment

SCRIPT = Path(__file__).with_name("record_backend.py")


def test_it_is_written_for_the_installed_megatron():
    """Each patch rests on what this version does; a new one needs a look at all of them."""
    assert importlib.metadata.version("megatron-core") == "0.19.2"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the backend is off where a GPU is")
def test_a_run_uses_every_patch_and_needs_no_other(tiny_run, tmp_path):
    """Train with recomputation, save, resume: fails when a patch is missing or megatron-core no longer asks for one."""
    tiny_run.training.recompute = "full"
    tiny_run.training.steps, tiny_run.checkpoint.every_steps = 2, 2
    folder = prepare_folder(tiny_run, resume=False)
    used = record(folder, tmp_path / "first.json")
    tiny_run.training.steps = 3
    prepare_folder(tiny_run, resume=True)
    used |= record(folder, tmp_path / "second.json", "--resume")
    needless = {f"{patch.module}.{patch.name}" for patch in cpu.PATCHES} - used
    assert not needless, f"megatron-core no longer calls {sorted(needless)}: remove them from PATCHES"


def record(folder: Path, out: Path, *options: str) -> set[str]:
    """Names of the patches that a run of one rank called."""
    environment = os.environ | rank_environment(0, 0, 1, "127.0.0.1", free_port())
    words = [sys.executable, str(SCRIPT), str(folder), str(out), *options]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)
    said = [done.stderr, *(log.read_text() for log in (folder / "logs").glob("rank_*.log"))]
    assert done.returncode == 0, "\n".join(said)[-3000:]
    return set(json.loads(out.read_text()))


def test_every_patch_says_why():
    """Reasons are part of the table."""
    assert all(len(patch.reason) > 15 for patch in cpu.PATCHES)
    names = [(patch.module, patch.name) for patch in cpu.PATCHES]
    assert len(names) == len(set(names))


def test_nothing_happens_where_a_gpu_is(monkeypatch):
    """No name is touched and nothing is announced."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.cuda.current_device
    said = []
    assert cpu.enable_cpu_backend(said.append) is False
    assert torch.cuda.current_device is before and not said


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cuda", "cpu"), ("cuda:1", "cpu"), (0, "cpu"), (torch.device("cuda", 3), "cpu"), ("meta", "meta"), (True, True)],
)
def test_device_arguments_are_mapped(device, expected):
    """CUDA devices by any spelling, and nothing else."""
    assert str(cpu._on_cpu(device)) == str(expected)
