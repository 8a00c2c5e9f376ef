"""Torch's own AdamW under Megatron's DistributedOptimizer: the fused one, and what saving and loading need.

With CUDA it works on the fused Adam of Transformer Engine or Apex, whose step counter lies in the parameter group.
Torch keeps a counter tensor per parameter, which three of its methods (megatron-core 0.19.2) do not expect. Each
function below wraps one of them; `cpu.py` lists them among its patches.
"""

from collections.abc import Callable

import torch

NOTHING_TRAINED = "nothing trained"
"""Key of the step counter on a rank whose parameters are all frozen (torch keeps keys that are no tensors)."""


class FusedAdamW(torch.optim.AdamW):
    """AdamW that goes over parameters, gradients and moments once, where torch's default does so once a term."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"fused": True, **kwargs})


def with_initial_state(state_dict: Callable) -> Callable:
    """`state_dict` reads the step, which torch creates only in the first step, and for a trained parameter.

    Loading asks for it before the first step; a pipeline stage may be frozen whole.
    """

    def wrapped(self) -> dict:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if not self.optimizer.state[parameter]:
                    moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                    self.optimizer.state[parameter] = {"step": torch.tensor(0.0), **moments}
        if not self.optimizer.state:
            self.optimizer.state[NOTHING_TRAINED] = {"step": torch.tensor(0.0)}
        return state_dict(self)

    return wrapped


def with_own_steps(load_state_dict: Callable) -> Callable:
    """`load_state_dict` hands one step tensor to all parameters; each increments it, so n parameters count n steps."""

    def wrapped(self, state: dict) -> None:
        load_state_dict(self, state)
        for values in self.optimizer.state.values():
            values["step"] = values["step"].clone()

    return wrapped


def without_step(set_states: Callable) -> Callable:
    """`_set_main_param_and_optimizer_states` looks every state tensor up in the checkpoint; the step is not there."""

    def wrapped(self, model_param: torch.Tensor, tensors: dict) -> None:
        set_states(self, model_param, {"step": None, **tensors})

    return wrapped
