"""The CPU backend holds what a whole run needs, and nothing that megatron-core does not ask for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_medx.parallel import cpu
from megatron_medx.training.local_ranks import free_port, rank_environment
from megatron_medx.training.prepare_run import prepare_folder

SCRIPT = Path(__file__).with_name("record_backend.py")
REPOSITORY = SCRIPT.parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the backend is off where a GPU is")
def test_a_run_uses_every_patch_and_needs_no_other(tiny_run, tmp_path):
    """Experts on two tensor ranks, recompute, save, resume, save beside training: patches are all there, none idle."""
    model = tiny_run.model
    model.num_experts, model.experts_per_token, model.expert_ffn_hidden_size = 4, 2, 24
    tiny_run.parallel.expert = 2
    tiny_run.training.recompute = "full"
    tiny_run.parallel.world_size = tiny_run.parallel.tensor = 2
    tiny_run.training.steps, tiny_run.checkpoint.every_steps = 2, 2
    folder = prepare_folder(tiny_run, resume=False, command=["test"])
    used = record(folder, tmp_path / "first.json")
    tiny_run.training.steps, tiny_run.checkpoint.async_save = 3, True
    prepare_folder(tiny_run, resume=True, command=["test"])
    used |= record(folder, tmp_path / "second.json", "--resume")
    needless = {f"{patch.module}.{patch.name}" for patch in cpu.PATCHES} - used
    assert not needless, f"megatron-core no longer calls {sorted(needless)}: remove them from PATCHES"


def record(folder: Path, out: Path, *options: str) -> set[str]:
    """Names of the patches that a run of two ranks called."""
    port = free_port()
    outs = [out.with_suffix(f".{rank}") for rank in range(2)]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(outs[rank]), *options],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | rank_environment(rank, rank, 2, "127.0.0.1", port),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=240)[1] for rank in ranks]
    said += [log.read_text() for log in (folder / "logs").glob("rank_*.log")]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(said)[-3000:]
    return {name for file in outs for name in json.loads(file.read_text())}
