"""The preflight on real GPUs over NCCL; skipped without one. Not yet run (2026-11-23): bounds are expected.

The same code on the CPU: tests/unit/preflight and tests/distributed/test_preflight.py.
"""

import os
import socket
import subprocess
import sys

import pytest

from megatron_medx.preflight import judge_hosts, judge_speed
from megatron_medx.run_folder import events

pytestmark = pytest.mark.gpu

PRODUCT_S = 0.05
"""Seconds for 8192^3 multiplications and additions in bf16: 2 ms on an H100, 20 on a T4. Expected, not measured."""

TASK = "import sys; from pathlib import Path; from megatron_medx.preflight.run import preflight; \
sys.exit(preflight(Path(sys.argv[1]), 60.0))"


@pytest.fixture(scope="module")
def passed(tmp_path_factory):
    """Screen of rank 0 and event of a preflight with a task for each GPU of this machine."""
    import torch

    folder, size = tmp_path_factory.mktemp("preflight") / "run", torch.cuda.device_count()
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    common = {"SLURM_NTASKS": str(size), "SLURM_STEP_NODELIST": "here", "SLURM_STEP_TASKS_PER_NODE": str(size)}
    common |= {"SLURMD_NODENAME": "here", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port + 10_000)}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", TASK, folder],
            env={**os.environ, **common, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    screens = [task.communicate(timeout=180)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0] * size, screens
    return screens[0], events.read(folder)[-1]


def test_every_gpu_of_this_machine_passes_over_nccl(passed):
    screen, event = passed
    assert "preflight passed" in screen and "no GPU" not in screen
    assert event["event"] == "preflight_passed" and event["took_s"] < 120


def test_the_driver_answers_about_health():
    from megatron_medx.preflight.facts import gpu_facts

    facts = gpu_facts(0)
    assert facts["health"].get("error") is None, facts["health"]
    assert facts["health"]["max_sm_mhz"] > 0 and facts["health"]["driver"]
    fact = {"rank": 0, "host": "here", "local_rank": 0, **facts}
    assert judge_hosts.gpu_health([fact]) == []


def test_the_product_is_fast_exact_and_as_on_the_cpu():
    import torch

    from megatron_medx.preflight import measure

    found = measure.multiply(measure.device_of(0), lambda: False)
    assert found["num_odd"] == 0 and found["multiply_s"] < PRODUCT_S, found
    fact = {"rank": 0, "host": "here", "local_rank": 0, "name": "GPU", **found}
    assert judge_speed.products([fact]) == []
    size = measure.MATRIX["cuda"]
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-128, 128, (size,) * 2, generator=generator, dtype=torch.int16) for _ in range(2))
    ours = left[:4].to("cuda", torch.bfloat16) @ right.to("cuda", torch.bfloat16)
    exact = (left[:4].double() @ right.double()).to(torch.bfloat16)
    assert torch.equal(ours.cpu(), exact), "sums are exact in fp32, so that only the last rounding is left"
