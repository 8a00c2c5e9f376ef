"""A rank that runs out of memory says what held it and stops; later in a launch it fails, to be started again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from grids import SCENARIOS, SMALL

from megatron_medx.config.overrides import apply_overrides
from megatron_medx.recipes import get_recipe
from megatron_medx.run_folder import events
from megatron_medx.training.local_ranks import free_port, rank_environment
from megatron_medx.training.prepare_run import prepare_folder
from megatron_medx.training.worker import USER_ERROR

SCRIPT = Path(__file__).with_name("out_of_memory_rank.py")
REPOSITORY = SCRIPT.parents[2]


@pytest.fixture(scope="module")
def ranks(data, tmp_path_factory):
    """Of a rank that fails in step 1 and one that fails in step 3, by step: folder, exit code and what was said."""
    folders = {step: tmp_path_factory.mktemp("out_of_memory") / "run" for step in (1, 3)}
    processes = {step: start(step, folder, data) for step, folder in folders.items()}
    said = {step: process.communicate(timeout=600)[0] for step, process in processes.items()}
    return {step: (folders[step], processes[step].returncode, said[step]) for step in folders}


def start(step, folder, data):
    """The rank that fails in this step."""
    one = ("parallel.world_size=1", "parallel.tensor=1")
    words = (*SMALL, *SCENARIOS["dense"], *one, f"run.folder={folder}", f"data.path={data}", "log.tensorboard=false")
    prepare_folder(apply_overrides(get_recipe("demo"), list(words)), resume=False, command=["test"])
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), str(step)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | rank_environment(0, 0, 1, "127.0.0.1", free_port()),
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("step", [1, 3])
def test_it_says_what_held_the_memory_and_what_would_help(step, ranks):
    folder, _, said = ranks[step]
    assert f"rank 0 ran out of memory in step {step}: CUDA out of memory. Tried to allocate 2.00 GiB; " in said
    # 704,036 parameters in fp32, and Adam's two moments of them as soon as a step is done
    weights, moments = "weights 0.00282", "optimizer 0.00563" if step == 3 else "optimizer 0"
    assert f"{weights} + gradients 0.00282 + {moments}" in said, said
    assert "most by activations and temporary tensors, of which vision activations are the largest" in said
    assert "do:     set training.recompute" in said and "GB less by estimate" in said
    (event,) = [event for event in events.read(folder) if event["event"] == "out_of_memory"]
    assert event["step"] == step and event["rank"] == 0 and "most by activations" in event["what"]


def test_before_the_first_step_of_a_launch_the_user_is_to_mend_it(ranks):
    _, code, _ = ranks[1]
    assert code == USER_ERROR


def test_later_it_fails_like_any_error(ranks):
    folder, code, _ = ranks[3]
    assert code == 1
    assert "torch.OutOfMemoryError" in (folder / "logs" / "rank_0.log").read_text()
