"""The network: Qwen3-VL on Megatron-Core modules. Knows no ranks, no data, no environment.

Shape suffixes used throughout, in the order of the dimensions:

    S  tokens of one row (text and image tokens; S/t on a tensor-parallel rank under sequence parallelism)
    1  the batch dimension that Megatron expects; a microbatch is one packed row
    H  hidden size of the decoder          E  hidden size of the vision tower
    P  patches of all images of the row    C  values of one patch (channels x frames x height x width)
    M  merged vision tokens, P / merge_size^2
    I  images                              V  vocabulary (V/t on a tensor-parallel rank)
    N  attention heads on this rank        D  size of one head
    K  DeepStack levels

Reading order: qwen3_vl.py, vision.py, merger.py, rotary.py, row_rotary.py, specs.py, layers.py, megatron_config.py,
auxiliary_loss.py, initial_weights.py.
"""
