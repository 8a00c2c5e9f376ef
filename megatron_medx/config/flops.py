"""Model FLOPs of one step, from what the rows really hold.

In: sizes, the length of every segment (sample) and the patches of every image. Out: FLOPs by part.
`training` divides them by the measured time, `describe` prints them before the run. Pure arithmetic.

Conventions. A multiply-add is 2 FLOPs. Only matrix products count: no norms, activations, rotary,
softmax, embedding lookup or position interpolation. Of a mixture of experts a token counts the router and the
experts that it is sent to. Attention between n tokens costs 4 n^2 x width in
the forward pass; causal attention (the decoder) counts half of that, the tower's counts whole.
The backward pass costs twice the forward: once for the gradients of the activations, once for those
of the weights. Recomputation is not counted: these are model FLOPs, not what the hardware executes.
Of a frozen part the weight gradients are not counted; its activation gradients (both products of the
attention core's backward included) are counted only if a trained part lies before it, for then
gradients must pass through: a frozen decoder under a trained merger costs almost as much as a trained one,
a frozen tower only its forward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_medx.config.model import ModelConfig
from megatron_medx.config.parameters import PART_OF, active_layer_matrices
from megatron_medx.config.run import PARTS


def step_flops(
    model: ModelConfig,
    tokens_per_segment: Sequence[int],
    patches_per_image: Sequence[int],
    freeze: Sequence[str] = (),
) -> dict[str, int]:
    """Return model FLOPs, forward and backward, of a step or of any set of rows.

    Args:
        model: the network's sizes.
        tokens_per_segment: tokens of each sample, image tokens included. Attention restarts at each.
        patches_per_image: patches of each image before merging (4 to a token with merge_size 2).
        freeze: parts that are not trained.

    Returns:
        FLOPs of `vision`, `merger`, `decoder`, `output`, and their sum `total`.
    """
    flops = {}
    for piece, (linear, attention) in forward_flops(model, tokens_per_segment, patches_per_image).items():
        part = PART_OF[piece]
        gradients_pass = any(before not in freeze for before in PARTS[: PARTS.index(part) + 1])
        weights = part not in freeze
        # activation gradients of a linear cost one forward, those of the attention core (two inputs a product) two
        flops[piece] = linear * (1 + gradients_pass + weights) + attention * (1 + 2 * gradients_pass)
    flops["total"] = sum(flops.values())
    return flops


def image_flops(model: ModelConfig, patches: int) -> int:
    """Return the forward FLOPs of one image in tower and mergers: the cost by which images are dealt to ranks.

    Args:
        model: the network's sizes.
        patches: of the image before merging. Attention stays within a frame: of an image with several, add up frames.
    """
    pieces = forward_flops(model, (), (patches,))
    return sum(pieces["vision"]) + sum(pieces["merger"])


def forward_flops(
    model: ModelConfig, tokens_per_segment: Sequence[int], patches_per_image: Sequence[int]
) -> dict[str, tuple[int, int]]:
    """Return (matrices with weights, attention cores) FLOPs of the forward pass of each piece."""
    vision = model.vision
    tokens, patches = sum(tokens_per_segment), sum(patches_per_image)
    vision_layer = vision.hidden_size * (4 * vision.hidden_size + 2 * vision.ffn_hidden_size)
    vision_linear = 2 * patches * (vision.patch_dim * vision.hidden_size + vision.num_layers * vision_layer)
    vision_attention = 4 * sum(n * n for n in patches_per_image) * vision.hidden_size * vision.num_layers
    mergers = 1 + len(vision.deepstack_layers)
    merged_tokens = patches // vision.merge_size**2
    merger_linear = 2 * merged_tokens * mergers * vision.merged_size * (vision.merged_size + model.hidden_size)
    decoder_linear = 2 * tokens * model.num_layers * active_layer_matrices(model)
    queries = model.num_heads * model.head_dim
    decoder_attention = 2 * sum(n * n for n in tokens_per_segment) * queries * model.num_layers
    return {
        "vision": (vision_linear, vision_attention),
        "merger": (merger_linear, 0),
        "decoder": (decoder_linear, decoder_attention),
        "output": (2 * tokens * model.vocab_size * model.hidden_size, 0),
    }


@dataclass(frozen=True, slots=True)
class FlopsPolynomial:
    """Model FLOPs, forward and backward, of segments and images as a sum of powers: for millions of them at once."""

    tokens: int
    """FLOPs per token of a segment."""
    tokens_squared: int
    """FLOPs per square of a segment's tokens."""
    patches: int
    """FLOPs per patch of an image."""
    patches_squared: int
    """FLOPs per square of an image's patches."""


def flops_polynomial(model: ModelConfig, freeze: Sequence[str] = ()) -> FlopsPolynomial:
    """Return the coefficients of `step_flops`' total, exact for images whose patches fill whole tokens.

    They are read off two segments and two images: f(n) = a n + b n^2, so b = (f(2n) - 2 f(n)) / 2 n^2.
    """

    def coefficients(one: int, two: int, n: int) -> tuple[int, int]:
        squared = (two - 2 * one) // (2 * n * n)
        return (one - squared * n * n) // n, squared

    token = model.vision.merge_size**2
    segments = [step_flops(model, [tokens], [], freeze)["total"] for tokens in (1, 2)]
    images = [step_flops(model, [], [patches], freeze)["total"] for patches in (token, 2 * token)]
    return FlopsPolynomial(*coefficients(*segments, 1), *coefficients(*images, token))
