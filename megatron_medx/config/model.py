"""ModelConfig: the sizes of one Qwen3-VL network, as data.

Field names are ours; `checkpoint/hugging_face/hf_config.py` holds the table to Hugging Face's `config.json`,
`models/megatron_config.py` the one to Megatron's TransformerConfig.
"""

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class VisionConfig:
    """Native-resolution vision transformer and its mergers."""

    hidden_size: int
    """Width of the tower."""
    num_layers: int
    """Transformer layers."""
    num_heads: int
    """Attention heads; hidden_size / num_heads is the head size and must be a multiple of 4 (2-D rotary)."""
    ffn_hidden_size: int
    """Inner width of the MLP (tanh-GELU)."""
    deepstack_layers: tuple[int, ...] = ()
    """0-based tower layers whose output also goes, through a merger each, into decoder layers 0, 1, 2, ..."""
    patch_size: int = 16
    """Side of a square patch, px."""
    temporal_patch_size: int = 2
    """Frames per patch; a still image is repeated."""
    merge_size: int = 2
    """A merge_size x merge_size block of patches becomes one token of the decoder."""
    num_position_embeddings: int = 2304
    """Learned positions, a square grid (48 x 48) that is interpolated to each image."""
    in_channels: int = 3
    """Color channels."""

    @property
    def patch_dim(self) -> int:
        """Values in one patch: channels x frames x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merged_size(self) -> int:
        """Width of a merge_size x merge_size block of patches side by side: what a merger's MLP reads."""
        return self.hidden_size * self.merge_size**2

    @property
    def token_side_px(self) -> int:
        """Side of the square of pixels that becomes one token of the decoder."""
        return self.patch_size * self.merge_size


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Qwen3-VL, dense or mixture of experts: Qwen3 decoder, vision tower, special token ids."""

    hidden_size: int
    """Width of the decoder."""
    num_layers: int
    """Decoder layers."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key/value heads (grouped-query attention)."""
    head_dim: int
    """Size of one head; num_heads x head_dim need not equal hidden_size."""
    ffn_hidden_size: int
    """Inner width of the dense SwiGLU MLP (a mixture-of-experts network states it without using it)."""
    vocab_size: int
    """Rows of the embedding; tensor parallelism must divide it (no padded rows: every grid has the same loss)."""
    vision: VisionConfig
    """The vision tower."""
    mrope_section: tuple[int, int, int]
    """Rotary frequencies given to time, height and width; they sum to head_dim / 2."""
    num_experts: int = 0
    """Experts of every decoder layer's MLP (mixture of experts); 0 is the dense network."""
    experts_per_token: int = 0
    """Experts that the router chooses for a token; their probabilities are scaled to sum to 1."""
    expert_ffn_hidden_size: int = 0
    """Inner width of one expert's SwiGLU MLP."""
    router_aux_loss_coef: float = 0.001
    """Weight of the loss that keeps experts equally busy; 0 switches it off."""
    rope_theta: float = 5e6
    """Rotary base."""
    rms_norm_eps: float = 1e-6
    """Epsilon of the RMS norms."""
    tie_embeddings: bool = False
    """True: the output layer uses the embedding's weight."""
    max_positions: int = 262144
    """Longest context promised to inference engines (`max_position_embeddings`)."""
    image_token_id: int = 151655
    """`<|image_pad|>`: one per merged image token."""
    video_token_id: int = 151656
    """`<|video_pad|>`."""
    vision_start_token_id: int = 151652
    """`<|vision_start|>`."""
    vision_end_token_id: int = 151653
    """`<|vision_end|>`."""

    @property
    def is_moe(self) -> bool:
        """Whether the decoder's MLPs are mixtures of experts."""
        return self.num_experts > 0
