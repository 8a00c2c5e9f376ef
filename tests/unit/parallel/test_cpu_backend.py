"""The CPU backend's table and device mapping; tests/distributed/test_backend_patches.py runs with it."""

import importlib.metadata

import pytest
import torch

from megatron_medx.parallel import cpu


def test_it_is_written_for_the_installed_megatron():
    """Each patch rests on what this version does; a new one needs a look at all of them."""
    assert importlib.metadata.version("megatron-core") == "0.19.2"


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
