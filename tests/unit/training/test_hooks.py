"""What is relied on of `megatron.training.training`, and the learning rates of the parts."""

import inspect

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
    assert list(inspect.signature(loop.get_megatron_optimizer_config).parameters) == ["args"]


def test_the_loop_calls_what_is_wrapped_by_its_module_name(loop):
    """A wrapper set on the module is found only if the loop looks the name up there."""
    assert {"train_step", "training_log"} <= set(loop.train.__code__.co_names)
    assert "get_megatron_optimizer_config" in loop.setup_model_and_optimizer.__code__.co_names
    assert "initialize_megatron" in loop.pretrain.__code__.co_names


def test_parts_get_their_own_peak_and_final_rates(loop):
    """Only parts that differ from the base rate are overridden; the final rate keeps the proportion."""
    from megatron_medx.training.hooks import rate_overrides

    optimizer = OptimizerSection(lr=1e-3, min_lr=1e-4, vision_lr=1e-4, language_lr=1e-3)
    overrides = rate_overrides(optimizer)
    (key,) = overrides
    assert overrides[key] == {"max_lr": 1e-4, "min_lr": pytest.approx(1e-5)}
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    assert key.matches(parameter, "module.module.vision.encoder.layers.0.mlp.linear_fc1.weight")
    assert not key.matches(parameter, "module.merger.final.linear_fc1.weight")
    assert not key.matches(parameter, "module.decoder.layers.0.mlp.linear_fc1.weight")
