"""Sources become data folders (builder/), data folders become rows (plan/, rows.py), rows become microbatches.

Comes in: files of hospitals and corpora, and a Hugging Face processor directory. Goes out: one `Microbatch` per global
row index, to `training`. Nothing here knows ranks, grids, Megatron or the network.

Reading order: samples.py, index.py, builder/build.py, plan/row_plan.py, reader.py, chat.py, collate.py, rows.py.
"""
