"""What is relied on of `megatron.training.training`, and the learning rates of the parts."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from megatron_medx.config.run import OptimizerSection


@pytest.fixture(scope="module")
def loop():
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()
    import megatron.training.training

    return megatron.training.training


def test_the_wrapped_functions_have_the_parameters_we_name(loop):
    """`hooks.py` passes everything on and reads these."""
    assert {"loss_dict", "iteration", "grad_norm"} <= set(inspect.signature(loop.training_log).parameters)
    assert list(inspect.signature(loop.train_step).parameters)[:5] == [
        "forward_step_func",
        "data_iterator",
        "model",
        "optimizer",
        "opt_param_scheduler",
    ]
    assert {"iteration", "optimizer"} <= set(inspect.signature(loop.train_step).parameters)
    assert list(inspect.signature(loop.finalize_model_grads).parameters)[:2] == ["model", "num_tokens"]
    assert "skipped_iter" in inspect.signature(loop.training_log).parameters
    assert list(inspect.signature(loop.get_megatron_optimizer_config).parameters) == ["args"]
    assert "iteration" in inspect.signature(loop.save_checkpoint_and_time).parameters


def test_the_loop_calls_what_is_wrapped_by_its_module_name(loop):
    """A wrapper set on the module is found only if the loop looks the name up there."""
    assert {"train_step", "training_log", "finalize_model_grads"} <= set(loop.train.__code__.co_names)
    assert "checkpoint_and_decide_exit" in loop.train.__code__.co_names
    assert "save_checkpoint_and_time" in loop.checkpoint_and_decide_exit.__code__.co_names
    assert "save_checkpoint_and_time" in loop.pretrain.__code__.co_names
    names = loop.setup_model_and_optimizer.__code__.co_names
    assert {"get_megatron_optimizer_config", "load_checkpoint"} <= set(names)
    assert "initialize_megatron" in loop.pretrain.__code__.co_names


@pytest.mark.parametrize(("weights", "scale"), [((1.5, 2.5), 0.25), ((0.25, 0.25), 2.0), ((0.0, 0.0), 0.0)])
def test_gradients_are_divided_by_the_exact_denominator(loop, monkeypatch, weights, scale):
    """Whatever whole number the schedule counted, also below 1; a schedule that counts nothing stays so."""
    from megatron_medx.training import hooks
    from megatron_medx.training.loss import StepLosses

    told, scaled, reduced = [], [], []
    monkeypatch.setattr(loop, "finalize_model_grads", lambda model, num_tokens, **kwargs: told.append(num_tokens))
    groups = SimpleNamespace(
        get_pipeline_model_parallel_last_rank=lambda: 3,
        get_pipeline_model_parallel_group=lambda: "stages",
        get_data_parallel_group=lambda with_context_parallel: f"data, context {with_context_parallel}",
    )
    collectives = SimpleNamespace(
        broadcast=lambda tensor, src, group: reduced.append((src, group)),
        all_reduce=lambda tensor, group: reduced.append(group),
    )
    monkeypatch.setattr(hooks, "mpu", groups)
    monkeypatch.setattr(hooks, "dist", collectives)
    losses = StepLosses()
    for weight in weights:
        entry = losses.add(["a"])
        entry.loss_sum, entry.denominator = torch.tensor(1.0), torch.tensor(weight, dtype=torch.float64)
    hooks._divide_by_the_denominator(losses)
    model = [SimpleNamespace(scale_gradients=scaled.append)]
    loop.finalize_model_grads(model, None)
    assert scaled == reduced == []
    loop.finalize_model_grads(model, torch.tensor(7, dtype=torch.int), force_all_reduce=False)
    assert told == [None, None] and reduced == [(3, "stages"), "data, context True"]
    assert scaled == [torch.tensor(scale)] and scaled[0].dtype == torch.float64


def test_the_reciprocal_of_a_whole_denominator_is_the_one_of_the_whole_number():
    """Per-token training is bit for bit what Megatron's integer count gives: 1 / n in float64, then float32."""
    gradient = torch.ones(3)
    counts = torch.arange(1, 200_001)
    whole = 1.0 / counts.int()
    exact = 1.0 / counts.double()
    assert whole.dtype == torch.float32 and torch.equal(whole, exact.float())
    for n in (3, 7, 4097):
        scale = 1.0 / torch.tensor(n, dtype=torch.float64)
        assert torch.equal(gradient.clone().mul_(scale), gradient * (1.0 / torch.tensor(n, dtype=torch.int)))


def test_parts_get_their_own_peak_and_final_rates(loop):
    """Only parts that differ from the base rate are overridden; the final rate keeps the proportion."""
    from megatron_medx.training.rates import rate_overrides

    optimizer = OptimizerSection(lr=1e-3, min_lr=1e-4, vision_lr=1e-4, language_lr=1e-3)
    overrides = rate_overrides(optimizer)
    (key,) = overrides
    assert overrides[key] == {"max_lr": 1e-4, "min_lr": pytest.approx(1e-5)}
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    assert key.matches(parameter, "module.module.vision.encoder.layers.0.mlp.linear_fc1.weight")
    assert not key.matches(parameter, "module.merger.final.linear_fc1.weight")
    assert not key.matches(parameter, "module.decoder.layers.0.mlp.linear_fc1.weight")


def test_a_checkpoint_gives_its_count_of_steps_and_the_run_its_rates():
    from megatron_medx.training.hooks import own_groups

    own = [{"params": [1], "max_lr": 1e-3, "betas": (0.9, 0.95)}, {"params": [], "max_lr": 1e-4, "step": 0}]
    stored = [{"max_lr": 7.0, "betas": (0.8, 0.8), "step": 12}]
    assert own_groups(own, stored) == [
        {"max_lr": 1e-3, "betas": (0.9, 0.95), "step": 12},
        {"max_lr": 1e-4, "step": 12},
    ]
    assert own_groups(own[:1], [{"max_lr": 7.0}]) == [{"max_lr": 1e-3, "betas": (0.9, 0.95)}]


def test_loading_a_carried_optimizer_starts_steps_schedule_and_data_anew(loop, monkeypatch):
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    from megatron_medx.training import hooks

    group = {"max_lr": 1.0, "min_lr": 0.0}
    scheduler = OptimizerParamScheduler(
        SimpleNamespace(param_groups=[group]), 0.0, 1.0, 0.0, 0, 100, "linear", 0.1, 0.1, 100, "constant"
    )
    arguments = SimpleNamespace(consumed_train_samples=0, skipped_train_samples=3, consumed_valid_samples=4)
    consumed = []

    def load(model, optimizer, opt_param_scheduler, **kwargs):
        arguments.consumed_train_samples = 40
        opt_param_scheduler.step(40)
        assert kwargs == {"strict": True} and group["lr"] == 0.6
        return 10, 12345

    monkeypatch.setattr(loop, "load_checkpoint", load)
    monkeypatch.setattr(hooks, "get_args", lambda: arguments)
    monkeypatch.setattr(hooks, "update_num_microbatches", lambda consumed_samples: consumed.append(consumed_samples))
    hooks._load_at_step_0()
    assert loop.load_checkpoint("model", "optimizer", scheduler, strict=True) == (0, 0)
    assert vars(arguments) == {"consumed_train_samples": 0, "skipped_train_samples": 0, "consumed_valid_samples": 0}
    assert group["lr"] == 1.0 and scheduler.num_steps == 0 and consumed == [0]


def test_a_save_hands_its_results_to_itself(loop, monkeypatch):
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    from megatron_medx.training import hooks

    monkeypatch.setattr(filesystem_async, "_results_queue", None)
    hooks._save_without_a_helper()
    results = filesystem_async.get_write_results_queue()
    results.put({0: []})
    assert results.get_nowait() == {0: []}


def test_a_saved_checkpoint_is_handed_to_followers_and_each_step_looks_what_is_due(loop, monkeypatch):
    from megatron_medx.training import hooks

    done = []
    save_parameters = inspect.signature(loop.save_checkpoint_and_time)

    def save(*args, **kwargs):
        done.append("saved")

    save.__signature__ = save_parameters
    monkeypatch.setattr(loop, "save_checkpoint_and_time", save)
    monkeypatch.setattr(loop, "training_log", lambda *args, **kwargs: done.append("logged") or "as it was")
    follower = SimpleNamespace(saved=lambda step: done.append(f"told of {step}"), advance=lambda: done.append("looked"))
    monitor = SimpleNamespace(save_time_s=None)
    hooks._follow_checkpoints([follower], monitor)
    loop.save_checkpoint_and_time(40, "model", "optimizer", "scheduler", 0, {}, train_data_iterator=None)
    assert loop.training_log({}, loss_scale=1) == "as it was"
    assert done == ["saved", "told of 40", "looked", "logged"]
    assert 0 <= monitor.save_time_s < 60


def test_a_run_without_a_step_to_train_does_not_write_its_last_checkpoint_again(loop, monkeypatch):
    from megatron_medx.training import hooks

    saved = []

    def save(*args, **kwargs):
        saved.append(args[0])

    save.__signature__ = inspect.signature(loop.save_checkpoint_and_time)
    monkeypatch.setattr(loop, "save_checkpoint_and_time", save)
    monkeypatch.setattr(hooks, "get_args", lambda: SimpleNamespace(iteration=10))
    told = []
    follower = SimpleNamespace(saved=told.append, advance=lambda: None)
    hooks._follow_checkpoints([follower], SimpleNamespace(save_time_s=None))
    hooks._save_no_step_twice()
    for step in (10, 11):
        loop.save_checkpoint_and_time(step, "model", "optimizer", "scheduler", 0, {}, train_data_iterator=None)
    assert saved == told == [11]
