"""Qwen3-VL: tower, mergers and Qwen3 decoder as one Megatron language module.

Input is one packed row (see data/microbatch.py); output is the loss of every token, or the hidden states of a pipeline
stage that is not the last. The tower and the mergers live on the first stage, the loss on the last.
"""

import torch
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.utils import nested_values
from megatron.core.enums import ModelType
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear, scatter_to_sequence_parallel_region
from megatron.core.transformer.transformer_block import TransformerBlock, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_medx.config.model import ModelConfig
from megatron_medx.models.megatron_config import tower_config
from megatron_medx.models.merger import Mergers
from megatron_medx.models.rotary import mrope_angles
from megatron_medx.models.specs import LayerSpecs
from megatron_medx.models.vision import VisionTower, packed_segments

PART_PREFIXES = {
    "vision": ("vision.",),
    "merger": ("merger.",),
    "language": ("embedding.", "decoder.", "output_layer."),
}
"""Parameter-name prefixes of the parts that recipes freeze or give a learning rate (config.run.PARTS)."""


class Qwen3VLModel(LanguageModule):
    """One pipeline stage of Qwen3-VL.

    Args:
        model: sizes.
        config: the decoder's Megatron configuration (grid and precision included).
        specs: which modules layers are built from.
        groups: Megatron's process groups.
        solo_groups: groups of one rank, for the tower.
        pre_process: this is the first stage (embedding, tower, mergers).
        post_process: this is the last stage (output layer, loss).
        vp_stage: index of the virtual stage, None without interleaving.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: TransformerConfig,
        specs: LayerSpecs,
        groups: ProcessGroupCollection,
        solo_groups: ProcessGroupCollection,
        pre_process: bool = True,
        post_process: bool = True,
        vp_stage: int | None = None,
    ):
        super().__init__(config, groups)
        self.sizes = model
        self.pre_process, self.post_process, self.vp_stage = pre_process, post_process, vp_stage
        self.share_embeddings_and_output_weights = model.tie_embeddings
        self.model_type = ModelType.encoder_or_decoder
        if pre_process:
            self.vision = VisionTower(model, tower_config(model, config), specs, solo_groups)
            self.merger = Mergers(model, config)
            self.embedding = LanguageModelEmbedding(
                config,
                model.vocab_size,
                max_sequence_length=model.max_positions,
                position_embedding_type="none",
                scatter_to_sequence_parallel=False,  # image tokens are written in first, on the whole row
                tp_group=groups.tp,
            )
        num_layers = get_num_layers_to_build(config, vp_stage, groups.pp.rank())
        self.decoder = TransformerBlock(
            config,
            specs.decoder_block(num_layers),
            pre_process=pre_process,
            post_process=post_process,
            pg_collection=groups,
            vp_stage=vp_stage,
        )
        if post_process:
            self.output_layer = ColumnParallelLinear(
                config.hidden_size,
                model.vocab_size,
                config=config,
                init_method=config.init_method,
                bias=False,
                skip_weight_param_allocation=pre_process and model.tie_embeddings,
                tp_group=groups.tp,
            )
        if pre_process or post_process:
            self.setup_embeddings_and_output_layer()

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor | None]) -> None:
        """Megatron's schedule hands over the previous stage's output here."""
        self.decoder.set_input_tensor(input_tensor[0] if isinstance(input_tensor, list) else input_tensor)

    def forward(
        self,
        tokens_1S: Tensor,
        positions_3S: Tensor,
        cu_seqlens: Tensor,
        pixels_PC: Tensor,
        grids_I3: Tensor,
        vision_index_M: Tensor,
        labels_1S: Tensor | None = None,
    ) -> Tensor:
        """One microbatch through this stage. Arguments are the fields of `Microbatch`, with the same shapes.

        Returns:
            Last stage: (1, S) float32 loss of every token, or (S, 1, V/t) logits when `labels_1S` is None.
            Other stages: (S, 1, H) hidden states, or (S/t, 1, H) under sequence parallelism.
        """
        h_S1H, levels_KS1H = None, None
        if self.pre_process:
            h_S1H, levels_KS1H = self._embed(tokens_1S, pixels_PC, grids_I3, vision_index_M)
        sizes = self.sizes
        h_S1H = self.decoder(
            hidden_states=h_S1H,
            attention_mask=None,
            context=levels_KS1H,
            rotary_pos_emb=mrope_angles(positions_3S, sizes.head_dim, sizes.rope_theta, sizes.mrope_section),
            packed_seq_params=packed_segments(cu_seqlens, int(cu_seqlens.diff().max())),
        )
        if not self.post_process:
            return h_S1H
        weight = self.shared_embedding_or_output_weight() if sizes.tie_embeddings else None
        logits_S1V, _ = self.output_layer(h_S1H, weight=weight)
        if labels_1S is None:
            return logits_S1V
        return self.compute_language_model_loss(labels_1S, logits_S1V.float())

    def _embed(
        self, tokens_1S: Tensor, pixels_PC: Tensor, grids_I3: Tensor, vision_index_M: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Embed microbatch tokens and write the image tokens over their placeholders.

        Returns:
            (S, 1, H) decoder input and (K, S, 1, H) DeepStack features (zero at text tokens), None when K is 0;
            both cut to this rank's S/t tokens under sequence parallelism.
        """
        h_S1H = self.embedding(tokens_1S, position_ids=None)
        image_MH, levels_MH = self._encode_images(pixels_PC, grids_I3)
        dtype = h_S1H.dtype
        h_S1H = h_S1H.index_copy(0, vision_index_M, image_MH.unsqueeze(1).to(dtype))
        blank = torch.zeros_like(h_S1H)
        levels = [blank.index_copy(0, vision_index_M, level.unsqueeze(1).to(dtype)) for level in levels_MH]
        if self.config.sequence_parallel:
            # Its backward gathers, so the tower receives the gradient of the whole row on every tensor rank.
            h_S1H, *levels = (scatter_to_sequence_parallel_region(x, group=self.tp_group) for x in (h_S1H, *levels))
        return h_S1H, torch.stack(levels) if levels else None

    def _encode_images(self, pixels_PC: Tensor, grids_I3: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(M, H) image tokens and K DeepStack levels of all images.

        Where nobody has an image the tower encodes one blank merge block and nothing of it is used: kernels never
        see an empty input, and every parameter takes part in the backward pass (with a zero gradient), which
        overlapped gradient reduction waits for.
        """
        num_images = grids_I3.shape[0]
        if num_images == 0:
            merge = self.sizes.vision.merge_size
            pixels_PC = pixels_PC.new_zeros(merge**2, self.sizes.vision.patch_dim)
            grids_I3 = grids_I3.new_tensor([[1, merge, merge]])
        image_MH, levels_MH = self.merger(*self.vision(pixels_PC, grids_I3))
        if num_images == 0:
            image_MH, levels_MH = image_MH[:0], [level[:0] for level in levels_MH]
        return image_MH, levels_MH

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> ShardedStateDict:
        """Megatron's sharded state dict; tower and mergers are marked as copies, not shards."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        for key, entry in state.items():
            if key.startswith((f"{prefix}vision.", f"{prefix}merger.")):
                _mark_replicated(entry, self.tp_group.rank())
        return state


def _mark_replicated(state: ShardedStateDict, tensor_rank: int) -> None:
    """Say in a checkpoint entry that tensor-parallel ranks hold copies of it.

    Modules on groups of one rank believe that they are the only tensor rank; every rank would claim to own the tensor
    and saving would refuse the duplicate.
    """
    for entry in nested_values({"entry": state}):
        pipeline, _, data = entry.replica_id
        entry.replica_id = (pipeline, tensor_rank, data)
