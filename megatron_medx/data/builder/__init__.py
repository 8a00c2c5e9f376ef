"""`medx data build`: any source becomes a data folder that training reads (`data/index.py` says what lies in it).

Reading order: build.py (the entry), options.py, plan.py, sources/, task.py, sample_files.py, tar_shards.py, merge.py,
report.py, executors.py. A build is cut into tasks by the source alone. Each task writes its shards and its part of the
index; the merge joins them in the source's order. So the bytes are the same for any number of workers and after any
interruption.
"""
