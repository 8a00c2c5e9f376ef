"""What a run will need and take, before a GPU is asked for: memory, FLOPs, bytes, seconds, GPU-hours, better grids.

Comes in: a RunConfig, and the data folder where there is one. Goes out: a report, as a dictionary (`report.py`), as
lines (`lines.py`) and as a picture (`picture.py`). Everything is an estimate from stated ceilings (`hardware.py`);
nothing is built or started, and torch is not needed.

Reading order: hardware.py, workload.py, links.py, traffic.py, row_time.py, timeline.py, step_time.py, search.py.
"""
