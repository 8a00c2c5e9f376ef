"""A profile, a GPU's memory that runs out, and NVTX ranges; skipped without a GPU. Not yet run (2026-11-23)."""

import json
import os
import pickle
import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu


def train(folder, demo, *words):
    """`medx train demo` on one GPU, four steps."""
    one = ("parallel.world_size=1", "parallel.tensor=1", "--nproc", "1", "training.steps=4", "precision.dtype=bf16")
    given = (f"run.folder={folder}", f"data.path={demo}", "optimizer.warmup_tokens=0", *one, *words)
    return subprocess.run(
        [sys.executable, "-m", "megatron_medx.cli", "train", "demo", *given],
        text=True,
        capture_output=True,
        timeout=600,
    )


def test_kernels_are_counted_by_part(demo, tmp_path):
    done = train(tmp_path / "run", demo, "training.profile=3:3")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "run" / "profile" / "summary_rank_0.json").read_text())
    assert summary["on_gpu"] and 0 < summary["busy_s"] <= sum(summary["step_s"])
    for name in ("vision tower", "attention", "MLP", "output layer"):
        assert summary["parts"][name]["forward_s"] > 0 and summary["parts"][name]["backward_s"] > 0, name
    found = sum(part["forward_s"] + part["backward_s"] for part in summary["parts"].values())
    others = summary["parts"].get("other", {"forward_s": 0.0})
    assert others["forward_s"] < found / 4, "nearly every kernel has a part"


def test_parts_are_named_for_nsight(demo, tmp_path):
    """NVTX calls cost next to nothing where no nsys listens: the run is as it was."""
    plain, named = (tmp_path / name for name in ("plain", "named"))
    for folder, word in ((plain, "training.nvtx=false"), (named, "training.nvtx=true")):
        assert train(folder, demo, word).returncode == 0
    plain_losses, named_losses = (
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (plain, named)
    )
    assert plain_losses == named_losses


def test_memory_that_runs_out_is_explained(demo, tmp_path):
    """A share of the GPU that weights fit into and a row's activations do not; the snapshot has the allocations."""
    program = (
        "import sys, torch; torch.cuda.set_per_process_memory_fraction(float(sys.argv.pop(1)));"
        "from megatron_medx.training import worker; sys.exit(worker.main(sys.argv[1:]))"
    )
    import torch

    from megatron_medx.config.overrides import apply_overrides
    from megatron_medx.recipes import get_recipe
    from megatron_medx.training.local_ranks import free_port, rank_environment
    from megatron_medx.training.prepare_run import prepare_folder

    words = (f"run.folder={tmp_path / 'run'}", f"data.path={demo}", "parallel.world_size=1", "parallel.tensor=1")
    words = (*words, "log.memory_history=true", "training.steps=4", "optimizer.warmup_tokens=0")
    folder = prepare_folder(apply_overrides(get_recipe("demo"), list(words)), resume=False, command=["test"])
    share = 96e6 / torch.cuda.get_device_properties().total_memory
    done = subprocess.run(
        [sys.executable, "-c", program, str(share), str(folder)],
        env=os.environ | rank_environment(0, 0, 1, "127.0.0.1", free_port()),
        text=True,
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "ran out of memory in step 1" in done.stdout and "most by" in done.stdout
    with open(folder / "profile" / "memory_rank_0.pickle", "rb") as file:
        assert pickle.load(file)["device_traces"]
