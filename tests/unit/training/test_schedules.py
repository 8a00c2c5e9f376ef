"""The learning rate of every step: Megatron's scheduler with our arguments against the formulas of the schedules."""

import argparse
import math
from types import SimpleNamespace

import pytest

from megatron_medx.config.checks import check
from megatron_medx.recipes import get_recipe

STEPS, WARMUP, DECAY = 50, 8, 12
PEAK, FINAL = 2e-3, 2e-4


def cosine(done):
    share = (done - WARMUP) / (STEPS - WARMUP)
    return FINAL + (PEAK - FINAL) * (1 + math.cos(math.pi * share)) / 2


def linear(done):
    return PEAK + (FINAL - PEAK) * (done - WARMUP) / (STEPS - WARMUP)


def constant(done):
    return PEAK


def wsd(done):
    share = max(0, done - (STEPS - DECAY)) / DECAY
    return FINAL + (PEAK - FINAL) * (1 - math.sqrt(share))


FORMULAS = {"cosine": cosine, "linear": linear, "constant": constant, "wsd": wsd}
"""Schedule -> rate after `done` steps, from the end of warm-up on."""


@pytest.fixture(scope="module")
def megatron():
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()
    import megatron.training.training as loop
    from megatron.training.arguments import add_megatron_arguments

    return SimpleNamespace(loop=loop, parser=add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)))


def scheduler(megatron, config, monkeypatch, tmp_path, group):
    """The scheduler that Megatron builds from our command line, for an optimizer with one group of parameters."""
    from megatron_medx.training.megatron_args import command_line, settings

    check(config)
    words = command_line(
        megatron.parser,
        settings(config, folder=tmp_path, resume=False, use_cuda=False, use_transformer_engine=False),
    )
    arguments = megatron.parser.parse_args(words)
    arguments.start_weight_decay = arguments.end_weight_decay = arguments.weight_decay  # as validate_args derives them
    monkeypatch.setattr(megatron.loop, "get_args", lambda: arguments)
    return megatron.loop.get_optimizer_param_scheduler(SimpleNamespace(param_groups=[group]))


@pytest.mark.parametrize("schedule", FORMULAS)
@pytest.mark.parametrize("rows", [2, 6])
def test_the_rate_of_every_step(megatron, monkeypatch, tmp_path, schedule, rows):
    config = get_recipe("demo")
    config.training.steps, config.training.global_batch_rows = STEPS, rows
    config.optimizer.schedule, config.optimizer.lr, config.optimizer.min_lr = schedule, PEAK, FINAL
    config.optimizer.warmup_tokens = WARMUP * rows * 512 - 100  # rounded up to whole steps
    config.optimizer.decay_tokens = DECAY * rows * 512 - 100 if schedule == "wsd" else 0
    group = {}
    built = scheduler(megatron, config, monkeypatch, tmp_path, group)
    for done in range(STEPS + 1):
        expected = PEAK * done / WARMUP if done < WARMUP else FORMULAS[schedule](done)
        assert group["lr"] == pytest.approx(expected, rel=1e-12), done
        built.step(rows)  # Megatron counts rows


def test_a_part_with_its_own_rate_follows_the_same_schedule(megatron, monkeypatch, tmp_path):
    config = get_recipe("demo")
    config.training.steps = STEPS
    config.optimizer.schedule, config.optimizer.warmup_tokens = "wsd", WARMUP * 1024
    config.optimizer.decay_tokens = DECAY * 1024
    config.optimizer.lr, config.optimizer.min_lr = PEAK, FINAL
    group = {"max_lr": PEAK / 5, "min_lr": FINAL / 5}
    built = scheduler(megatron, config, monkeypatch, tmp_path, group)
    built.step(2 * (STEPS - 3))
    assert group["lr"] == pytest.approx(wsd(STEPS - 3) / 5, rel=1e-12)


def test_names_of_schedules_are_megatrons(megatron):
    """An unknown inner style of WSD would end in a failed assertion at the first step of the decay."""
    choices = {action.dest: action.choices for action in megatron.parser._actions}
    assert {"cosine", "linear", "constant", "WSD"} <= set(choices["lr_decay_style"])
    assert "minus_sqrt" in choices["lr_wsd_decay_style"]
