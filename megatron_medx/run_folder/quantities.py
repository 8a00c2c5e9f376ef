"""What a run is measured by: the one table of names, units and meanings.

Who writes a number (training/), shows it (status/, watch/, report/) or hands it to a tracker takes its name from here,
so it is called the same everywhere and its definition is never more than a key or a click away.

A key is that of a line of `metrics.jsonl`, `ranks.jsonl` or `validation.jsonl`; DERIVED ones are worked out by readers.
"""

from dataclasses import dataclass

from megatron_medx.config.validation import MAIN_SET

PARTS = ("vision", "merger", "language")
"""Parts of the network that rates and gradient norms are told apart by: tower, mergers, decoder with embeddings."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """One measured number."""

    label: str
    """What people see beside it."""
    unit: str
    """As written behind the number; empty for a pure number."""
    meaning: str
    """What it is and how it is taken, in a sentence or two."""


def _by_part(key: str, label: str, unit: str, meaning: str) -> dict[str, Quantity]:
    names = {"vision": "tower", "merger": "mergers", "language": "decoder"}
    whose = {"vision": "the vision tower", "merger": "the mergers", "language": "decoder, embeddings and output layer"}
    return {
        f"{key}_{part}": Quantity(f"{label}, {names[part]}", unit, meaning.format(part=whose[part])) for part in PARTS
    }


STEP: dict[str, Quantity] = {
    "step": Quantity("step", "", "Optimizer steps done, this one included."),
    "loss": Quantity(
        "loss",
        "nats/token",
        "Cross entropy over the step's trained tokens, averaged as training.loss_average says; none in a step without "
        "trained tokens, or where it is not finite.",
    ),
    "grad_norm": Quantity(
        "gradient norm", "", "Norm of all gradients of the step before clipping; none in a skipped step."
    ),
    **_by_part(
        "grad_norm",
        "gradient norm",
        "",
        "Norm of the gradients of {part} before clipping; none where that part is frozen, or the step was skipped.",
    ),
    "lr": Quantity("learning rate", "", "Rate of the schedule for parts without a rate of their own."),
    **_by_part("lr", "learning rate", "", "Rate that {part} learned with in this step; none where it is frozen."),
    "tokens": Quantity("tokens", "tokens", "Text and image tokens of the step's rows, padding not counted."),
    "images": Quantity("images", "images", "Images in the step's rows."),
    "source_tokens": Quantity(
        "tokens by source", "tokens", "The step's tokens told apart by the data folder they come from: the mixture."
    ),
    "samples_crc": Quantity(
        "samples",
        "",
        "Sum of the CRC-32 of the ids of the step's samples: equal where steps held the same samples, on any ranks.",
    ),
    "step_time_s": Quantity("step time", "s", "Seconds in the step, loading included; saving and validation are not."),
    "data_wait_s": Quantity("data wait", "s", "Seconds of the step in which the reporting rank waited for rows."),
    "model_tflops_per_s": Quantity(
        "model TFLOP/s",
        "TFLOP/s/rank",
        "Floating-point operations that the network needs for the step's tokens and images, tower counted, "
        "recomputation not, divided by the step time and the number of ranks.",
    ),
    "mfu": Quantity(
        "MFU",
        "%",
        "Model FLOPs utilization: model TFLOP/s over the dense bf16 peak of the rank's GPU; none where the peak is not "
        "known, as on a CPU.",
    ),
    "memory_gb": Quantity(
        "memory",
        "GB",
        "Most memory that the reporting rank has held since it started: allocated on its GPU, or of its process "
        "without one. 1 GB is 10^9 bytes.",
    ),
}
"""Of a line of metrics.jsonl, one a step; `skipped`, true, stands only in lines of steps whose update was left out."""

RANKS: dict[str, Quantity] = {
    "step": STEP["step"],
    "step_time_s": Quantity("step time of each rank", "s", "Seconds of this rank in the step, as for the run."),
    "busy_s": Quantity(
        "time to gradients",
        "s",
        "From the step's begin until this rank's own gradients were ready to be summed with the others'. Ranks that "
        "wait for the slowest are early here; the rank with the longest holds the step up.",
    ),
    "data_wait_s": Quantity("data wait of each rank", "s", "Seconds of the step in which this rank waited for rows."),
    "memory_gb": Quantity(
        "memory of each rank", "GB", "Most memory that this rank has held since it started, as for the run."
    ),
}
"""Of a line of ranks.jsonl, one every log.ranks_every_steps; all but `step` are lists, by rank."""

VALIDATION: dict[str, Quantity] = {
    "step": STEP["step"],
    "set": Quantity("set", "", "Name of the validation set: `validation` is data.validation_path."),
    "loss": Quantity(
        "validation loss",
        "nats/token",
        "Cross entropy over all trained tokens of the set's rows, averaged as training.loss_average says, as if they "
        "were a single step's.",
    ),
    "perplexity": Quantity(
        "perplexity", "", "e to the mean cross entropy of the set's trained tokens, each counted once."
    ),
    "bits_per_byte": Quantity(
        "bits per byte",
        "bits/byte",
        "Cross entropy in bits of the set's trained tokens, divided by the UTF-8 bytes that they spell: comparable "
        "between tokenizers. Special tokens, such as <|im_end|>, are no text and count in neither.",
    ),
    "accuracy": Quantity(
        "accuracy",
        "%",
        "Share of the set's multiple-choice questions whose correct option has the highest log-likelihood, summed over "
        "the tokens of the answer; none in a set without such questions.",
    ),
    "num_questions": Quantity(
        "questions", "questions", "Multiple-choice questions that accuracy is taken over: all options looked at."
    ),
    "rows": Quantity("rows", "rows", "Rows of the set that were looked at."),
    "tokens": Quantity("tokens", "tokens", "Text and image tokens in them, padding not counted."),
    "trained_tokens": Quantity("trained tokens", "tokens", "Tokens of them that the loss is taken over."),
    "samples_crc": Quantity("samples", "", "Sum of the CRC-32 of the ids of the set's samples, as for a step."),
    "by_modality": Quantity(
        "loss by modality", "nats/token", "Mean cross entropy of trained tokens, by the modality that samples name."
    ),
    "by_source": Quantity(
        "loss by source", "nats/token", "Mean cross entropy of trained tokens, by the source that samples name."
    ),
    "duration_s": Quantity(
        "duration", "s", "Seconds that validating the set took: what it costs, generations not counted."
    ),
}
"""Of a line of validation.jsonl, one a validation and set."""

DERIVED: dict[str, Quantity] = {
    "tokens_per_s": Quantity("tokens/s", "tokens/s", "Tokens of a step over its step time, of the whole run."),
    "data_wait_share": Quantity(
        "data wait", "%", "Share of the step time in which the reporting rank waited for rows, over the last steps."
    ),
    "step_time_p50_s": Quantity("step time, median", "s", "Half of the last steps took longer."),
    "step_time_p90_s": Quantity("step time, 90 %", "s", "One in ten of the last steps took longer."),
    "step_time_p99_s": Quantity("step time, 99 %", "s", "One in a hundred of the last steps took longer."),
    "left_s": Quantity("time left", "s", "Until the last step, at the pace since the last saves, validation included."),
    "mixture_share": Quantity(
        "mixture", "%", "Share of a source in the tokens of the last steps, beside the share that was planned."
    ),
    "slowest_rank": Quantity(
        "slowest rank",
        "",
        "The rank whose gradients were ready last, by the median of the last lines of ranks.jsonl, and how much later "
        "than the median rank's that was.",
    ),
    "trained_s": Quantity("training", "s", "Step times of all steps, less the waits for data."),
    "waited_s": Quantity(
        "data wait, all steps", "s", "Seconds of all steps in which the reporting rank waited for rows."
    ),
    "validated_s": Quantity("validation, all", "s", "Seconds that all validations took, over all sets."),
    "saved_s": Quantity("saves", "s", "Seconds that all saves took; asynchronous ones pass beside training."),
    "started_s": Quantity("starts", "s", "From the start of ranks to the end of their first step, over all launches."),
    "repeated_s": Quantity(
        "repeated steps", "s", "An estimate: steps that a launch made again after a restart, at the median step time."
    ),
    "rank_lateness": Quantity(
        "later than the median rank", "%", "A rank's time to gradients over the median rank's of the same step, less 1."
    ),
    "restarts": Quantity("restarts", "launches", "Times that ranks were started again after the first launch."),
}
"""What readers work out of these."""


def tracked_name(table: dict[str, Quantity], key: str, validation_set: str = MAIN_SET) -> str:
    """What trackers call a number: `train/loss`, `train/lr_vision`, `validation/chest/perplexity`, `ranks/busy_s`.

    Args:
        table: STEP, RANKS or VALIDATION.
        key: of that table.
        validation_set: name of the set, for VALIDATION.

    Raises:
        KeyError: the table has no such key.
    """
    table[key]
    if table is VALIDATION:
        return f"validation/{validation_set}/{key}"
    return f"{'train' if table is STEP else 'ranks'}/{key}"
