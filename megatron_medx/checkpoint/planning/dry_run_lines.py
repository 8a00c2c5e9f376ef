"""The text of `medx convert ... --dry-run`, from what `dry_run.dry_run` found."""

import os

from megatron_medx.checkpoint.reports.inspection_lines import table
from megatron_medx.checkpoint.reports.layer_ranges import by_layer


def dry_run_lines(report: dict) -> list[str]:
    """Lines for a person: keys of both sides with equal layers in one line, files, totals, disk, time.

    Args:
        report: from `dry_run`.
    """
    return [*_key_lines(report), "", *_file_lines(report), "", *_total_lines(report)]


def _key_lines(report: dict) -> list[str]:
    """One line for the groups that differ only in their layer."""
    sides = [
        _renamed(report["keys"], lambda one: _short(one["hf"])),
        _renamed(report["keys"], lambda one: one["megatron"]),
    ]
    hf, megatron = (by_layer(keys, lambda one: (one["shapes"], one["dtype"])) for keys in sides)
    if report["direction"] == "to-hf":
        hf, megatron, titles = megatron, hf, ("Megatron", "Hugging Face")
    else:
        titles = ("Hugging Face", "Megatron")
    rows = [
        [
            left,
            right,
            one[0]["shapes"],
            one[0]["dtype"],
            f"{len(one):,}",
            _gigabytes(sum(each["bytes"] for each in one)),
        ]
        for (left, one), right in zip(hf.items(), megatron, strict=True)
    ]
    return table([[*titles, "shape in Megatron", "dtype", "groups", "size"], *rows])


def _renamed(keys: list[dict], name) -> list[dict]:
    return [{**one, "name": name(one), "shapes": " x ".join(map(str, one["megatron_shape"]))} for one in keys]


def _short(keys: list[str]) -> str:
    """`a.q_proj.weight`, `a.k_proj.weight` -> `a.{q,k}_proj.weight`."""
    if len(keys) == 1:
        return keys[0]
    start = os.path.commonprefix(keys)  # noqa: RUF071, of strings that are no paths
    end = os.path.commonprefix([key[len(start) :][::-1] for key in keys])[::-1]  # noqa: RUF071
    return start + "{" + ",".join(key[len(start) : len(key) - len(end)] for key in keys) + "}" + end


def _file_lines(report: dict) -> list[str]:
    """The files; of many the first and the last two."""
    rows = [[one["name"], f"{one['tensors']:,}", _gigabytes(one["bytes"])] for one in report["files"]]
    if len(rows) > 6:
        rows = [*rows[:2], [f"({len(rows) - 4:,} more)", "", ""], *rows[-2:]]
    return table([["file", "tensors", "size"], *rows])


def _total_lines(report: dict) -> list[str]:
    disk, tensors = report["disk"], report["tensors"]
    sides = {"Hugging Face": tensors["hf"], "Megatron": tensors["megatron"]}
    source, target = sides.items() if report["direction"] == "to-megatron" else reversed(sides.items())
    rows = [
        ["tensors", f"{source[1]:,} ({source[0]}) -> {target[1]:,} ({target[0]}), every one of them once"],
        ["bytes", f"{_gigabytes(report['bytes'])} in {len(report['files']):,} files"],
        ["disk", f"{_gigabytes(disk['needed_bytes'])} needed, {_gigabytes(disk['free_bytes'])} free"],
        ["output", "; ".join(report["obstacles"]) or f"{report['out']} may be written"],
        ["time", _time(report["time"], report["bytes"])],
    ]
    if report["earlier_files"]:
        rows.append(
            ["earlier", f"an attempt left {report['earlier_files']:,} finished files; the same command goes on"]
        )
    return [*table(rows), "nothing was written"]


def _time(time: dict, num_bytes: int) -> str:
    if time["seconds"] is None:
        return "not known: the output's disk may not be written, so its speed was not measured"
    about = f"about {_duration(time['seconds'])}"
    if time["assumed_bytes_per_s"]:
        return f"{about} = {_gigabytes(num_bytes)} at the assumed {time['assumed_bytes_per_s'] / 1e6:,.0f} MB/s"
    read = f"read at {_rate(time['read'])} (the beginning of {time['read_from']})" if time["read"] else (
        "read as fast as written (no weights here)")  # fmt: skip
    return f"{about} = {_gigabytes(num_bytes)} {read} + written and synced at {_rate(time['write'])}, measured now"


def _rate(trial: dict) -> str:
    size, seconds = trial["bytes"] / 1e6, trial["seconds"]
    return f"{size / seconds:,.0f} MB/s ({size:.0f} MB in {seconds:.2f} s)"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.3f} GB"
