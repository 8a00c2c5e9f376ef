"""What the driver says of one GPU, through nvidia-smi.

One way for all clusters: nvidia-smi comes with the driver, into containers too, and shows what an administrator will
look at. Bindings of NVML would be one more package for the same numbers.
"""

import csv
import io
import subprocess

FIELDS = {
    "driver": "driver_version",
    "uncorrected_ecc": "ecc.errors.uncorrected.volatile.total",
    "remap_pending": "remapped_rows.pending",
    "remap_failed": "remapped_rows.failure",
    "sm_mhz": "clocks.current.sm",
    "max_sm_mhz": "clocks.max.sm",
    "temperature_c": "temperature.gpu",
    "used_mib": "memory.used",
}
"""Our name of a fact -> nvidia-smi's."""

REASONS_FIELDS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""Names of the mask of reasons, of drivers from 535 on and of older ones: an unknown field fails the whole query."""

REASONS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Bit -> why clocks are lowered (nvml.h, nvmlClocksEventReason*). Left out: idle, power cap and settings, no faults."""

WORDS = {"driver"}
"""Facts that are text."""

QUERY_S = 20.0
"""Seconds for an answer; a driver in trouble does not give one."""


def command(uuid: str, reasons_field: str) -> list[str]:
    """The query for one GPU. Its UUID is `GPU-` and what torch calls it: indices depend on CUDA_VISIBLE_DEVICES."""
    fields = ",".join([*FIELDS.values(), reasons_field])
    return ["nvidia-smi", f"--id={uuid}", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]


def read_health(uuid: str) -> dict:
    """Ask for one GPU: the keys of FIELDS, None where it has no such thing, and `reasons`, a list of names.

    Returns:
        `{"error": text}` where nvidia-smi is missing, fails or does not answer.
    """
    error = ""
    for reasons_field in REASONS_FIELDS:
        try:
            done = subprocess.run(command(uuid, reasons_field), capture_output=True, text=True, timeout=QUERY_S)
        except (OSError, subprocess.SubprocessError) as problem:
            return {"error": f"nvidia-smi: {problem}"}
        if done.returncode == 0:
            return parse_health(done.stdout)
        error = (done.stdout + done.stderr).strip() or f"exit code {done.returncode}"
    return {"error": f"nvidia-smi: {error}"}


def parse_health(text: str) -> dict:
    """Read the one line that `command` asks for; `[N/A]`, `[Not Supported]` and the like become None."""
    values = next(csv.reader(io.StringIO(text), skipinitialspace=True), [])
    if len(values) != len(FIELDS) + 1:
        return {"error": f"nvidia-smi answered {text.strip()!r}"}
    health = {name: _value(name, value.strip()) for name, value in zip(FIELDS, values, strict=False)}
    try:
        mask = int(values[-1].strip(), 16)
    except ValueError:
        mask = 0
    return health | {"reasons": [reason for bit, reason in REASONS.items() if mask & bit]}


def _value(name: str, text: str) -> object:
    if text.strip("[]") in ("N/A", "Not Supported", "Unknown Error", ""):
        return None
    if name in WORDS:
        return text
    if text in ("Yes", "No"):
        return int(text == "Yes")
    return int(text) if text.isdecimal() else None
