"""Bytes of the buffers that a rank communicates with, beside what it holds and keeps.

Gradients are reduced and weights gathered inside the buffers that hold them, so data parallelism needs none. NCCL's own
buffers are not in it: they lie outside of torch's allocator.
"""

from megatron_medx.config.activations import RowLoad
from megatron_medx.config.number_bytes import PRECISIONS
from megatron_medx.config.run import RunConfig


def communication_bytes(config: RunConfig, stage: int, load: RowLoad) -> int:
    """Return the bytes of a rank's communication buffers on a pipeline stage, as if all were full at one time.

    With b bytes an activation, S tokens a row, H the hidden width, T tensor and C context ranks:

        tensor     the hidden states of a layer at work, gathered over T, beside their gradient, which is about to be
                   scattered: 2 S / C x H b. The output layer's gather has a buffer of its own that is never given
                   back (core/tensor_parallel/layers.py, `get_global_memory_buffer`): once more on the last stage.
        context    keys and values of the whole row: S x 2 key width / T x b. Our attention gathers them
                   (models/layers.py), Transformer Engine's passes them around a ring and keeps all it has received
                   until it is through (AttnFuncWithCPAndKVP2P).
        pipeline   for each neighbor what is sent and what is received: 2 S / (C T) x H b. DeepStack features are not
                   sent: the layers that they go to are on the first stage.
        expert     the tokens that a rank sends to experts, and as many that it receives: 2 k S / (C T) x H b, k
                   experts a token. Experts that get more than their share are not foreseen.
        images     features of all levels of the row's image tokens, gathered from the ranks that share them, each
                   padded to the one with most (models/image_encoding.py): first stage only.
    """
    model, parallel = config.model, config.parallel
    row, keys = load.row_tokens / parallel.context, 2 * model.num_kv_heads * model.head_dim
    values, last = 0.0, stage == parallel.pipeline - 1
    if parallel.tensor > 1:
        values += (3 if last else 2) * row * model.hidden_size
    if parallel.context > 1:
        values += load.row_tokens * keys / parallel.tensor
    values += 2 * ((stage > 0) + (not last)) * load.tokens * model.hidden_size
    if parallel.expert > 1:
        values += 2 * model.experts_per_token * load.tokens * model.hidden_size
    ranks = parallel.tensor * parallel.context
    if stage == 0 and ranks > 1:
        features = (1 + len(model.vision.deepstack_layers)) * model.hidden_size
        values += ranks * load.patches / model.vision.merge_size**2 * features
    return int(values * PRECISIONS[config.precision.dtype].activation)
