"""Qwen3-VL: tower, mergers and Qwen3 decoder as one Megatron language module.

Input is one packed row (see data/microbatch.py); output is the loss of every token, or the hidden states of a pipeline
stage that is not the last. The tower and the mergers live on the first stage, the loss on the last.

Ranks that share a row (context c x tensor t) are given all of it. Of its S tokens each context rank computes
L = S / c (parallel/context.py), and of these, under sequence parallelism, each tensor rank holds L / t between layers.
"""

import torch
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.utils import nested_values
from megatron.core.enums import ModelType
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.transformer_block import TransformerBlock, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_medx.config.model import ModelConfig
from megatron_medx.models.auxiliary_loss import weigh_auxiliary_losses
from megatron_medx.models.image_encoding import encode_images, mark_as_shared
from megatron_medx.models.megatron_config import tower_config
from megatron_medx.models.merger import Mergers
from megatron_medx.models.rotary import mrope_angles
from megatron_medx.models.row_rotary import cosines_and_sines
from megatron_medx.models.specs import LayerSpecs
from megatron_medx.models.vision import VisionTower, packed_segments
from megatron_medx.parallel.context import tokens_of_rank

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
        recompute_vision: activation recomputation of the tower (megatron_config.RECOMPUTE).
        fp8_vision: the tower's layers compute in FP8 where the decoder's do.
        tower_rests: tower and mergers are left out for a row without images, where nothing waits for their gradients.
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
        recompute_vision: str = "none",
        fp8_vision: bool = False,
        tower_rests: bool = False,
    ):
        super().__init__(config, groups)
        self.sizes, self.tower_rests = model, tower_rests
        self.pre_process, self.post_process, self.vp_stage = pre_process, post_process, vp_stage
        self.share_embeddings_and_output_weights = model.tie_embeddings
        self.model_type = ModelType.encoder_or_decoder
        if pre_process:
            tower = tower_config(model, config, recompute_vision, fp8_vision)
            self.vision = VisionTower(model, tower, specs, solo_groups)
            self.merger = Mergers(model, config)
            mark_as_shared(self.vision, config.sequence_parallel)
            mark_as_shared(self.merger, config.sequence_parallel)
            self.embedding = LanguageModelEmbedding(
                config,
                model.vocab_size,
                max_sequence_length=model.max_positions,
                position_embedding_type="none",
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
        row_weight: Tensor | None = None,
    ) -> Tensor:
        """One microbatch through this stage. Arguments are the fields of `Microbatch`, with the same shapes.

        `row_weight` is the () sum of the row's loss weights, which routers' auxiliary losses are weighed by; without
        it their scale is Megatron's.

        `cu_seqlens`, `grids_I3` and `vision_index_M` stay on the CPU, where indices are worked out without waiting for
        the GPU. So may `pixels_PC`, the patches of the images that this rank encodes.

        Returns:
            Last stage: (1, L) float32 loss of every token, or (L, 1, V/t) logits when `labels_1S` is None.
            Other stages: (L, 1, H) hidden states, or (L/t, 1, H) under sequence parallelism.
        """
        device, sizes = tokens_1S.device, self.sizes
        held_L = tokens_of_rank(cu_seqlens, self.cp_group.size(), self.cp_group.rank())
        h_L1H, levels_KL1H = None, None
        if self.pre_process:
            features_GKH, place_M = encode_images(
                sizes, self.vision, self.merger, pixels_PC, grids_I3, self.pg_collection, self.tower_rests
            )
            h_L1H = self.embedding(tokens_1S[:, held_L.to(device)], position_ids=None)
            h_L1H, levels_KL1H = self._write_images(h_L1H, held_L, features_GKH, place_M, vision_index_M)
            del features_GKH  # of the whole row: gigabytes for long ones, while the decoder needs what was written
        held_positions_3L = positions_3S[:, held_L.to(device)]
        angles_L11D = mrope_angles(held_positions_3L, sizes.head_dim, sizes.rope_theta, sizes.mrope_section)
        h_L1H = self.decoder(
            hidden_states=h_L1H,
            attention_mask=None,
            context=levels_KL1H,
            rotary_pos_emb=cosines_and_sines(angles_L11D, self.config.params_dtype),
            packed_seq_params=packed_segments(cu_seqlens.to(device), int(cu_seqlens.diff().max())),
        )
        if sizes.is_moe and row_weight is not None:
            weigh_auxiliary_losses(h_L1H, row_weight, tokens_1S.shape[1])
        if not self.post_process:
            return h_L1H
        weight = self.shared_embedding_or_output_weight() if sizes.tie_embeddings else None
        logits_L1V, _ = self.output_layer(h_L1H, weight=weight)
        if labels_1S is None:
            return logits_L1V
        return self.compute_language_model_loss(labels_1S[:, held_L.to(device)], logits_L1V.float())

    def _write_images(
        self, h_L1H: Tensor, held_L: Tensor, features_GKH: Tensor, place_M: Tensor, vision_index_M: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Write image tokens over their placeholders, as far as this rank holds them.

        Args:
            h_L1H: (L, 1, H) embedded tokens, or (L/t, 1, H) under sequence parallelism.
            held_L: (L,) positions in the row of this context rank's tokens.
            features_GKH, place_M: from `encode_images`.
            vision_index_M: (M,) positions in the row of all image tokens.

        Returns:
            The decoder's input and (K, L, 1, H) DeepStack features (zero at text tokens), None when K is 0 or the
            tower rests; both of the first argument's tokens.
        """
        if not len(features_GKH):
            return h_L1H, None
        held = held_L.split(h_L1H.shape[0])[self.tp_group.rank() if self.config.sequence_parallel else 0]
        slot_S = torch.full((len(held_L) * self.cp_group.size(),), -1)
        slot_S[held] = torch.arange(len(held))
        slots_M = slot_S[vision_index_M]
        mine = slots_M >= 0
        slots, places = (index[mine].to(h_L1H.device) for index in (slots_M, place_M))
        written_KMH = features_GKH.index_select(0, places).to(h_L1H.dtype).unsqueeze(2).unbind(dim=1)
        blank = torch.zeros_like(h_L1H)
        levels = [blank.index_copy(0, slots, level) for level in written_KMH[1:]]
        return h_L1H.index_copy(0, slots, written_KMH[0]), torch.stack(levels) if levels else None

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
