"""The routers' auxiliary loss against its formula, by brute force on the same router probabilities.

Megatron's is a loss of each layer, E sum_i f_i P_i, added up over the layers. That of transformers differs: it pools
the choices and the probabilities of all layers before it multiplies them, and does not divide the choices by k, so
that k is balance instead of 1. Neither can be turned into the other; a coefficient of transformers' acts like
k / num_layers of ours where experts are balanced.
"""

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from networks import megatron_model, parameters_by_key, stock_model, tiny
from test_model import ROWS, model_inputs, our_losses, row_of, samples_of

COEFFICIENT = 0.3


def brute_force(probabilities_TE, top_k):
    """E sum_i f_i P_i of one layer and row, token by token."""
    num_tokens, num_experts = probabilities_TE.shape
    chosen = [0] * num_experts
    for token in probabilities_TE.tolist():
        for expert in sorted(range(num_experts), key=lambda expert: -token[expert])[:top_k]:
            chosen[expert] += 1
    shares = [count / (num_tokens * top_k) for count in chosen]
    means = [probabilities_TE[:, expert].mean() for expert in range(num_experts)]
    return num_experts * sum(share * mean for share, mean in zip(shares, means, strict=True))


def router_probabilities(ours, row):
    """(S, E) softmax of every layer's router, with graph."""
    logits = []
    hooks = [
        layer.mlp.router.register_forward_pre_hook(lambda router, inputs: logits.append(router.gating(inputs[0])))
        for layer in ours.decoder.layers
    ]
    ours(*model_inputs(row))
    for hook in hooks:
        hook.remove()
    return [of_layer.flatten(0, 1).softmax(-1) for of_layer in logits]


@pytest.mark.parametrize("experts", [(5, 2), (8, 3)])
@pytest.mark.parametrize("per_token_loss", [False, True], ids=["as Megatron weighs it", "by the weights of the row"])
def test_the_gradient_of_the_auxiliary_loss_is_that_of_its_formula(experts, per_token_loss, one_rank):
    """The gradient of a step with the loss, less that of one without, for every parameter."""
    MoEAuxLossAutoScaler.set_loss_scale(torch.tensor(1.0))  # as the schedule does before each backward pass
    model = tiny(experts=experts)
    stock = stock_model(model)
    row = row_of(model, samples_of(model, ROWS["images of different sizes, two in one sample"]), align_tokens=8)
    weights_1S = 0.25 * row.loss_weights_1S  # not 1, as when losses are averaged per sample
    plain = megatron_model(model, one_rank, stock)
    formula = sum(brute_force(probabilities, experts[1]) for probabilities in router_probabilities(plain, row))
    factor = weights_1S.sum().item() if per_token_loss else 1.0
    (COEFFICIENT * factor * formula).backward()
    expected = {key: parameter.grad for key, parameter in parameters_by_key(plain).items()}

    gradients = []
    for coefficient in (0.0, COEFFICIENT):
        balanced = tiny(experts=experts, aux_loss=coefficient)
        ours = megatron_model(balanced, one_rank, stock, calculate_per_token_loss=per_token_loss)
        more = {"row_weight": weights_1S.sum()} if per_token_loss else {}
        losses_1S = ours(*model_inputs(row), labels_1S=row.labels_1S, **more)
        (losses_1S * weights_1S).sum().backward()
        gradients.append({key: parameter.grad for key, parameter in parameters_by_key(ours).items()})

    largest = max(gradient.abs().max() for gradient in expected.values() if gradient is not None)
    assert largest > 1e-4
    for key, gradient in expected.items():
        added = gradients[1][key] - gradients[0][key]
        wanted = torch.zeros_like(added) if gradient is None else gradient
        # the difference of two gradients carries the rounding of the larger
        tolerance = 1e-5 * largest + 1e-6 * gradients[0][key].abs().max()
        assert (added - wanted).abs().max() < tolerance, key


def test_the_losses_of_tokens_are_reported_without_it(one_rank):
    """It enters the gradient alone, whatever its coefficient."""
    stock = stock_model(tiny(experts=(5, 2)))
    row = row_of(tiny(), samples_of(tiny(), ROWS["one image"]))
    of_both = [
        our_losses(megatron_model(tiny(experts=(5, 2), aux_loss=weight), one_rank, stock), row) for weight in (0.0, 5.0)
    ]
    assert torch.equal(*of_both)
