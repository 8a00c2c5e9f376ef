"""What lies in a run folder, by name; whoever writes or reads a run's files takes the names from here.

    run.yaml  events.jsonl  metrics.jsonl  ranks.jsonl  validation.jsonl  generations.jsonl  bad_steps.jsonl
    rejects.jsonl  loss.png  tensorboard/  wandb/  trackers.json
    precision_gate.json  precision_gate.png  precision_gate/
                   verdict, curves and trials of FP8 against bf16 (training/precision_gate.py)
    lock.json      whose job the folder is (lock.py)
    profile/       traces and summaries of training.profile; snapshots of memory that ran out (training/profiling/)
    report.html    of `medx report`
    preflight/     a file of each host, while the preflight looks whether all see them (preflight/shared_files.py)
    logs/          rank_<n>.log, error.txt, stacks_rank_<n>.txt, export_<step>.log
    data/          the tables that the order of rows is worked out from (data/plan/prepare.py); made at each launch
    checkpoints/   run.yaml, plan.json, skipped_rows.jsonl, processor/, iter_<step>/: whole without the rest; latest, a
                   link; damaged-iter_<step>/ and .deleted-iter_<step>/ (integrity.py)
    exports/       Hugging Face directories of some steps (training/exports.py)
    start/         what a Hugging Face directory became that the run started from (training/start.py)

`run.yaml`, `checkpoints/` and Megatron's own names stand in config/checkpoint_folders.py: a root of checkpoints has
them without a run.
"""

EVENTS_FILE = "events.jsonl"
METRICS_FILE, BAD_STEPS_FILE, REJECTS_FILE = "metrics.jsonl", "bad_steps.jsonl", "rejects.jsonl"
RANKS_FILE, GENERATIONS_FILE = "ranks.jsonl", "generations.jsonl"
TRACKERS_FILE = "trackers.json"
"""Tracker -> what it calls the run, so that a run that goes on goes on there."""

LOCK_FILE = "lock.json"
REPORT_FILE = "report.html"
PROFILE, PROFILE_SUMMARY = "profile", "summary.txt"
"""Folder of what profiling leaves, and in it the summary of all ranks."""

PREFLIGHT = "preflight"

GATE, GATE_FILE, GATE_PICTURE = "precision_gate", "precision_gate.json", "precision_gate.png"
"""Folder of the trials of the precision gate; its record and its picture."""

LOGS, ERROR_FILE = "logs", "error.txt"
"""Folder of what processes print, and in it the error that a launch stopped with."""

DATA = "data"
"""Folder of the tables that the order of rows is worked out from."""

SKIPPED_ROWS_FILE = "skipped_rows.jsonl"
"""In `checkpoints/`: rows that a rolled back run leaves out (skipped_rows.py)."""


def rank_log(rank: int) -> str:
    """In the folder of logs: what a rank and the libraries print."""
    return f"rank_{rank}.log"


def stacks_file(rank: int) -> str:
    """In the folder of logs: where the threads of a rank stood when a step hung."""
    return f"stacks_rank_{rank}.txt"


def trace_file(rank: int) -> str:
    """In the folder of profiling: what torch's profiler recorded of a rank."""
    return f"trace_rank_{rank}.json.gz"


def summary_file(rank: int) -> str:
    """In the folder of profiling: where the time of a rank's steps went."""
    return f"summary_rank_{rank}.json"


def memory_file(rank: int) -> str:
    """In the folder of profiling: the allocations of a rank that ran out of memory."""
    return f"memory_rank_{rank}.pickle"
