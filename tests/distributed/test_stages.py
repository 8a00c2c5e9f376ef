"""align -> pretrain -> midtrain -> sft, three steps each, every stage from the one before and on another grid.

A first step of warm-up has rate 0: the checkpoint after it still holds the weights that the stage started from.
"""

import math

import pytest
import torch
from agreement import assert_clear_error, moments, weights
from grids import SMALL
from medx_runs import stopped_at

from megatron_medx.checkpoint.convert import to_hf
from megatron_medx.config.files import read_run_yaml
from megatron_medx.models.qwen3_vl import PART_PREFIXES

WORDS = (
    *(word for word in SMALL if not word.startswith("optimizer.")), "training.steps=3", "checkpoint.every_steps=1"
)  # fmt: skip
"""The stages' recipes at the size of SMALL, with their own rates and schedules; every step is saved."""

LINEAR = ("optimizer.schedule=linear", "optimizer.min_lr=5e-5")
"""In the place of mid-training's constant rate, to see where on the schedule a step is."""

ONE_STEP = "optimizer.warmup_tokens=1024"
"""Of warm-up: four rows of 256 tokens."""


def start_from(place):
    """As a word of `medx train`."""
    return f"checkpoint.start_from={place}"


def align(runs):
    """The first stage, from seeded weights."""
    return runs.train("align", *WORDS, ONE_STEP, config="demo_align").ok()


def pretrain(runs):
    """From the Hugging Face directory that the first stage is exported to."""
    hf = runs.folder / "align_hf"
    to_hf(runs.once("align", align).result().folder, hf)
    return runs.train("pretrain", *WORDS, ONE_STEP, start_from(hf), config="demo_pretrain", grid="tp2").ok()


def midtrain(runs):
    """From a run folder, with its optimizer, which another grid wrote."""
    before = runs.once("pretrain", pretrain).result()
    return runs.train("midtrain", *WORDS, *LINEAR, start_from(before.folder), config="demo_midtrain", grid="dp2").ok()


def midtrain_fresh(runs):
    """The same without the optimizer."""
    before = runs.once("pretrain", pretrain).result()
    words = (start_from(before.folder), "checkpoint.carry_optimizer=false")
    return runs.train("midtrain_fresh", *WORDS, *LINEAR, *words, config="demo_midtrain", grid="dp2").ok()


def midtrain_resumed(runs):
    """Died after step 2, went on."""
    source = stopped_at(2, runs.once("midtrain", midtrain).result(), runs.folder / "midtrain_at_2")
    return runs.resume(source, "midtrain_resumed", grid="dp2").ok()


def sft(runs):
    """From an iteration folder that is not the newest."""
    before = runs.once("midtrain", midtrain).result()
    words = (ONE_STEP, start_from(before.checkpoints / "iter_0000002"))
    return runs.train("sft", *WORDS, *words, config="demo_sft", grid="pp2").ok()


def sft_with_carried_optimizer(runs):
    """Mid-training trained the tower, SFT does not."""
    before = runs.once("midtrain", midtrain).result()
    words = (ONE_STEP, start_from(before.folder), "checkpoint.carry_optimizer=true")
    return runs.train("sft_carried", *WORDS, *words, config="demo_sft")


FLOWS = (align, pretrain, midtrain, midtrain_fresh, midtrain_resumed, sft, sft_with_carried_optimizer)


@pytest.fixture(scope="module", autouse=True)
def stages(runs):
    """Name -> future of its run, all started at once."""
    return {flow.__name__: runs.once(flow.__name__, flow) for flow in FLOWS}


def differing(one, other):
    """Keys whose tensors are not equal in every bit."""
    assert one.keys() == other.keys() and len(one) > 60
    return {key for key in one if not torch.equal(one[key], other[key])}


def test_align_trains_the_mergers_alone(stages):
    run = stages["align"].result()
    changed = differing(weights(run, 1), weights(run, 3))
    assert changed == {key for key in weights(run, 1) if key.startswith(PART_PREFIXES["merger"])}


def test_pretraining_starts_from_the_exported_weights_and_trains_all(stages):
    before, run = stages["align"].result(), stages["pretrain"].result()
    assert not differing(weights(before, 3), weights(run, 1))
    assert differing(weights(run, 1), weights(run, 3)) == weights(run, 1).keys()
    assert (run.folder / "start" / "release").is_dir()
    assert run.column("step") == [1, 2, 3]


def test_a_run_folder_means_its_newest_checkpoint_and_run_yaml_names_it(stages):
    before, run = stages["pretrain"].result(), stages["midtrain"].result()
    recorded = read_run_yaml(run.folder / "run.yaml").checkpoint
    assert recorded.start_from == str(before.checkpoints / "iter_0000003") and recorded.carry_optimizer


def test_carried_moments_are_those_of_the_stage_before(stages):
    """After one step with gradient g a moment is b m + (1 - b) g, or g^2: the same g with and without m."""
    before, run, fresh = (stages[name].result() for name in ("pretrain", "midtrain", "midtrain_fresh"))
    assert run.column("loss")[0] == fresh.column("loss")[0], "the same weights, the same rows"
    assert run.column("loss")[2] != fresh.column("loss")[2]
    betas = {"exp_avg": 0.9, "exp_avg_sq": 0.95}
    for name, beta in betas.items():
        former, carried, anew = (moments(*of, name) for of in ((before, 3), (run, 1), (fresh, 1)))
        assert former.keys() == carried.keys() == anew.keys() and len(former) > 60
        for key in former:
            expected = beta * former[key] + anew[key]
            assert (carried[key] - expected).norm() <= 1e-6 * expected.norm(), key
            assert former[key].norm() > 0, key


def test_adam_counts_on_while_steps_schedule_and_data_begin_anew(stages):
    before, run, fresh = (stages[name].result() for name in ("pretrain", "midtrain", "midtrain_fresh"))
    assert run.column("step") == [1, 2, 3]
    assert run.column("lr") == pytest.approx([2e-4, 1.5e-4, 1e-4]), "from the rate where pretraining ends"
    assert run.column("tokens") == fresh.column("tokens")
    key = "decoder.layers.0.mlp.linear_fc1.weight"
    w, u = weights(before, 3)[key].double(), weights(run, 1)[key].double()
    m, v = (moments(run, 1, name)[key].double() for name in ("exp_avg", "exp_avg_sq"))
    errors = {
        count: (w - 2e-4 * (0.01 * w + (m / (1 - 0.9**count)) / ((v / (1 - 0.95**count)).sqrt() + 1e-8)) - u).norm()
        for count in range(1, 8)
    }
    assert min(errors, key=errors.get) == 4, "three steps of pretraining and one"
    assert errors[4] <= 1e-4 * (w - u).norm()


def test_a_resumed_stage_goes_on_from_its_own_checkpoint(stages):
    run, resumed = stages["midtrain"].result(), stages["midtrain_resumed"].result()
    for key in ("step", "loss", "grad_norm", "lr", "tokens"):
        assert resumed.column(key) == run.column(key), key
    assert not differing(weights(run, 3), weights(resumed, 3))
    assert read_run_yaml(resumed.folder / "run.yaml").checkpoint == read_run_yaml(run.folder / "run.yaml").checkpoint


def test_sft_starts_from_the_named_iteration_with_a_frozen_tower(stages):
    before, run = stages["midtrain"].result(), stages["sft"].result()
    assert not differing(weights(before, 2), weights(run, 1))
    changed = differing(weights(run, 1), weights(run, 3))
    assert changed == {key for key in weights(run, 1) if not key.startswith(PART_PREFIXES["vision"])}
    peak = 10 * 2e-4
    assert run.column("lr") == pytest.approx([0, peak, 2e-4 + (peak - 2e-4) * (1 + math.cos(math.pi / 2)) / 2])


def test_an_optimizer_without_the_parts_that_are_frozen_now_is_refused(stages):
    run = stages["sft_with_carried_optimizer"].result()
    assert_clear_error(run, "nothing frozen before and vision frozen now", "checkpoint.carry_optimizer=false")
