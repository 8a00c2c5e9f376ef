"""The parts of a step and the kinds of work in them, by name: for who marks them, reads a trace, or shows what it says.

A part is what time was spent for, a kind is what was done. The time of a backward pass belongs to the part whose
forward pass it undoes.
"""

import re

MARK = "part:"
"""Ranges in a trace that stand for parts begin with it."""

STEP = "step"
"""The range around a whole step. What happens between steps (logging, validation, saving) is in none."""

DATA_WAIT = "data wait"
IMAGE_EXCHANGE = "image exchange"
"""Images dealt to the ranks that share a row, and their features gathered."""
TOWER, MERGERS, EMBEDDING = "vision tower", "mergers", "embedding"
ATTENTION, MLP, EXPERTS, DECODER = "attention", "MLP", "experts", "decoder, rest"
"""Of the decoder's layers; its rest are norms, residuals, rotary angles and recomputation."""
OUTPUT, LOSS = "output layer", "loss"
PIPELINE = "pipeline transfer"
"""Between stages, and the wait for the neighbor's: the bubble is in it."""
BACKWARD = "backward, rest"
"""What no forward operation is known of: the engine that walks the graph."""
ACCUMULATION = "gradient accumulation"
"""What adds a parameter's gradient to its buffer, whatever part the parameter is of."""
GRADIENT_REDUCTION, WEIGHT_GATHERING = "gradient reduction", "weight gathering"
"""Of the distributed optimizer, over data-parallel ranks; and sums of gradients that other axes share."""
OPTIMIZER = "optimizer"
OTHER = "other"
"""The rest of a step."""

PARTS = (
    *(DATA_WAIT, IMAGE_EXCHANGE, TOWER, MERGERS, EMBEDDING, ATTENTION, MLP, EXPERTS, DECODER, OUTPUT, LOSS, PIPELINE),
    *(BACKWARD, ACCUMULATION, GRADIENT_REDUCTION, WEIGHT_GATHERING, OPTIMIZER, OTHER),
)
"""In the order of a step."""

COMMUNICATION, ATTENTION_CORE = "communication", "attention cores"

KINDS = (
    (COMMUNICATION, re.compile(r"nccl|gloo|c10d", re.IGNORECASE)),
    (ATTENTION_CORE, re.compile(r"flash|fmha|sdpa|attention|attn|softmax.*(causal|mask)", re.IGNORECASE)),
    ("matrix products", re.compile(r"gemm|nvjet|cutlass|cublas|wgmma|xmma|splitk|::_?\w*mm$", re.IGNORECASE)),
    ("casts to FP8", re.compile(r"(?<!broad)cast|quantize|amax|fp8|swizzle", re.IGNORECASE)),
    ("copies", re.compile(r"memcpy|memset|copy|copies", re.IGNORECASE)),
    ("norms", re.compile(r"rms_?norm|layer_?norm|ln_fwd|ln_bwd|welford", re.IGNORECASE)),
)
"""Kind -> what its names hold, of GPU kernels or torch's operators, in the order in which they are asked."""

ELEMENTWISE = "elementwise and others"
"""Kind of a kernel or operator that is none of KINDS."""

BETWEEN = "between operators"
"""Kind of the time of a CPU in which no operator runs: Python, the autograd engine."""


def kind_of(name: str) -> str:
    """Which kind of work a kernel or operator does, by its name.

    Example: `cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16` is attention, for that is asked first.
    """
    return next((kind for kind, pattern in KINDS if pattern.search(name)), ELEMENTWISE)
