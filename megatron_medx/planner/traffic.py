"""Bytes that a rank sends along each axis, for a row or once a step.

Counted is what leaves one rank: of an all-gather or reduce-scatter of B bytes over n ranks (n - 1) / n x B, of an
all-to-all of B bytes the same share, of a message to the next stage all of it.
"""

from dataclasses import dataclass

from megatron_medx.config.memory import PRECISIONS, stage_parameters
from megatron_medx.config.parameters import PART_OF
from megatron_medx.config.run import RunConfig
from megatron_medx.planner.workload import Load


@dataclass(frozen=True, slots=True)
class Messages:
    """What a rank sends along one axis in the passes of a layer, a tower or an output layer."""

    forward_bytes: float = 0.0
    backward_bytes: float = 0.0
    hidden_bytes: float = 0.0
    """Of the backward ones, those sent beside a matrix product."""
    forward: int = 0
    """Collectives."""
    backward: int = 0

    def again(self) -> "Messages":
        """With another forward pass in the backward one, as full recomputation has it."""
        return Messages(
            self.forward_bytes,
            self.backward_bytes + self.forward_bytes,
            self.hidden_bytes,
            self.forward,
            self.backward + self.forward,
        )


def layer_messages(config: RunConfig, load: Load) -> dict[str, Messages]:
    """What a decoder layer sends for a row: along tensor, context and expert.

    Tensor, with sequence parallelism, each of a context rank's hidden states: forward an all-gather before attention
    and before the MLP and a reduce-scatter after each; backward the same, and once more the all-gather of the input for
    the weights' gradient, beside which a matrix product runs, as beside the last reduce-scatter. Experts are not
    sliced: their layers do so around attention alone. Context: keys and values gathered forward, their gradients
    reduce-scattered backward (parallel/context.py). Expert: each token's hidden state to its experts and back, forward
    and backward.
    """
    model, p, value = config.model, config.parallel, PRECISIONS[config.precision.dtype].activation
    hidden = _others(p.tensor) * load.slots / p.context * model.hidden_size * value
    blocks = 1 if model.is_moe else 2
    tensor = Messages(2 * blocks * hidden, 3 * blocks * hidden, 2 * blocks * hidden, 2 * blocks, 3 * blocks)
    keys = _others(p.context) * load.slots * 2 * model.num_kv_heads * model.head_dim / p.tensor * value
    sent = load.slots / (p.context * p.tensor) * model.experts_per_token * model.hidden_size * value
    sent *= _others(p.expert)
    return {
        "tensor": tensor,
        "context": Messages(keys, keys, 0.0, 1, 1),
        "expert": Messages(2 * sent, 2 * sent, 0.0, 2, 2),
    }


def tower_messages(config: RunConfig, load: Load) -> dict[str, Messages]:
    """What the first stage sends for a row before its layers: image features, embeddings.

    Features are the main merger's and those of every DeepStack level. These are added by layers of the first stage and
    never leave it.
    """
    model, p, value = config.model, config.parallel, PRECISIONS[config.precision.dtype].activation
    levels = 1 + len(model.vision.deepstack_layers)
    features = load.patches / model.vision.merge_size**2 * levels * model.hidden_size * value
    features *= _others(p.tensor * p.context)
    hidden = _others(p.tensor) * load.slots / p.context * model.hidden_size * value
    return {"images": Messages(features, features, 0.0, 1, 1), "tensor": Messages(hidden, hidden, 0.0, 1, 1)}


def output_messages(config: RunConfig, load: Load) -> dict[str, Messages]:
    """What the output layer sends for a row: its input gathered, twice again backward as of any sliced layer."""
    value = PRECISIONS[config.precision.dtype].activation
    p = config.parallel
    hidden = _others(p.tensor) * load.slots / p.context * config.model.hidden_size * value
    return {"tensor": Messages(hidden, 2 * hidden, 2 * hidden, 1, 2)}


def hop_bytes(config: RunConfig, load: Load) -> float:
    """Hidden states of a row that one rank hands to the next stage; their gradient comes back the same size."""
    p = config.parallel
    value = PRECISIONS[config.precision.dtype].activation
    return load.slots / (p.tensor * p.context) * config.model.hidden_size * value if p.pipeline > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Trained:
    """Trained parameters that a rank of a stage holds."""

    others: float
    """All but experts, shared over data x context."""
    experts: float
    shared: float
    """Of the others, tower and mergers: whole on every tensor rank, which sum their gradients."""
    tied: float
    """Of the others, a copy of the embedding that first and last stage keep equal."""


def trained_parameters(config: RunConfig, stage: int) -> Trained:
    """Return what a rank of a pipeline stage trains."""
    freeze, ends = config.training.freeze, (0, config.parallel.pipeline - 1)
    held = {
        piece: count
        for piece, count in stage_parameters(config, stage).items()
        if PART_OF["decoder" if piece == "experts" else piece] not in freeze
    }
    experts = held.pop("experts", 0)
    is_copied = config.model.tie_embeddings and config.parallel.pipeline > 1 and stage in ends
    return Trained(
        others=sum(held.values()),
        experts=experts,
        shared=held.get("vision", 0) + held.get("merger", 0),
        tied=held.get("embeddings" if stage == 0 else "output", 0) if is_copied else 0,
    )


@dataclass(frozen=True, slots=True)
class StepBytes:
    """What a rank of a stage sends once a step."""

    gradients: float
    """Reduce-scatter of fp32 gradients over data x context."""
    weights: float
    """All-gather of the updated weights over the same."""
    expert_gradients: float
    expert_weights: float
    shared_gradients: float
    """All-reduce of the gradients of tower and mergers over tensor."""
    tied_gradients: float
    """All-reduce of the embedding's between first and last stage."""


def step_bytes(config: RunConfig, stage: int) -> StepBytes:
    """Return what a rank of a stage sends once a step, with the distributed optimizer."""
    p, precision, held = config.parallel, PRECISIONS[config.precision.dtype], trained_parameters(config, stage)
    share = _others(p.data * p.context)
    expert_share = _others(p.tensor * p.context * p.data // p.expert)
    return StepBytes(
        gradients=share * precision.gradient * held.others,
        weights=share * precision.weight * held.others,
        expert_gradients=expert_share * precision.gradient * held.experts,
        expert_weights=expert_share * precision.weight * held.experts,
        shared_gradients=2 * _others(p.tensor) * precision.gradient * held.shared,
        tied_gradients=precision.gradient * held.tied,
    )


def _others(ranks: int) -> float:
    return (ranks - 1) / ranks
