"""`medx doctor`: a full report here, and the apex that is not NVIDIA's."""

import importlib

import pytest

from megatron_medx import doctor
from megatron_medx.cli import main


def put_apex(folder, monkeypatch, *parts: str):
    """Make a package called apex that can be found but not imported."""
    (folder / "apex").mkdir()
    (folder / "apex" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    for part in parts:
        (folder / "apex" / part).mkdir()
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()


def test_the_unrelated_apex_is_warned_of_and_not_imported(tmp_path, monkeypatch):
    put_apex(tmp_path, monkeypatch)
    found = doctor.apex()
    assert "NOT NVIDIA's" in found.state
    assert str(tmp_path) in found.warning and "pip uninstall apex" in found.warning


def test_nvidias_apex_is_known_by_its_optimizers(tmp_path, monkeypatch):
    put_apex(tmp_path, monkeypatch, "optimizers")
    found = doctor.apex()
    assert found.state.startswith("NVIDIA's") and "without fused kernels" in found.state
    assert not found.warning


@pytest.mark.parametrize(
    ("cuda", "engine", "backend", "layers"),
    [
        (False, False, "CPU over gloo", "local"),
        (False, True, "CPU over gloo", "local"),
        (True, False, "CUDA over NCCL", "local"),
        (True, True, "CUDA over NCCL", "Transformer Engine"),
    ],
)
def test_what_will_be_used(cuda, engine, backend, layers):
    first, second = doctor.will_use(cuda, engine)
    assert backend in first and layers in second


def test_slurm_inside_a_job(tmp_path, monkeypatch):
    for name in ("sbatch", "sinfo", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert "inside job 17" in doctor.slurm().state
    monkeypatch.setenv("PATH", "")
    assert "missing: no sbatch, sinfo, srun" in doctor.slurm().state


def test_a_missing_package_says_how_to_get_it():
    assert "pip install -c constraints.txt no-such-thing" in doctor.required("no-such-thing").warning


def test_the_report_names_everything(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("Python", "torch", "megatron-core", "transformers", "pydicom", "CUDA", "NCCL"):
        assert f"{name} " in out
    for name in ("Transformer Engine", "Apex", "DALI", "Slurm", "will run on:", "layers:"):
        assert name in out


@pytest.mark.parametrize(
    ("capability", "said"),
    [
        ((9, 0), "delayed, tensorwise, blockwise"),
        ((8, 9), "delayed, tensorwise; blockwise needs"),
        ((8, 0), "none; delayed"),
        (None, "none; delayed needs Transformer Engine"),
    ],
)
def test_which_recipes_of_fp8_a_machine_can_train_with(monkeypatch, capability, said):
    import torch

    monkeypatch.setattr(doctor, "find_version", lambda name: "2.20.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert doctor.fp8().state.startswith(said)
    monkeypatch.setattr(doctor, "find_version", lambda name: None if "engine" in name else "1.0")
    assert doctor.fp8().state.startswith("none; delayed needs")
