"""Samples, images, positions, the order of rows, and the microbatches training reads.

Comes in: a data folder (`samples.jsonl`, `images/`) and a Hugging Face processor directory.
Goes out: one `Microbatch` per global row index, to `training`. Nothing here knows ranks, grids,
Megatron or the network.
"""
