"""The text of `medx convert inspect`, from what `inspection.inspect` found."""

import math

from megatron_medx.checkpoint.reports.layer_ranges import by_layer
from megatron_medx.config.run import PARTS


def inspection_lines(report: dict, *, every_tensor: bool = False) -> list[str]:
    """Lines for a person: what it is, the run, the tensors, the totals.

    Args:
        report: from `inspect`.
        every_tensor: False puts the tensors of equal layers into one line, with the range of their norms.
    """
    only = f", the {report['only']} part alone" if report["only"] else ""
    rows = [("what", report["kind"] + only), ("folder", report["folder"]), *_network(report["network"]), *_run(report)]
    rows += _provenance(report["provenance"])
    files = report["files"]
    ranks = f", written by {_counted(files['ranks'], 'rank')}" if files["ranks"] else ""
    rows.append(("files", f"{_counted(files['num'], 'file')}, {_gigabytes(files['bytes'])}{ranks}"))
    lines = table([list(row) for row in rows])
    return [*lines, "", *_tensor_lines(report["tensors"], every_tensor), "", *_totals(report["totals"])]


def _network(network: dict) -> list[tuple[str, str]]:
    sizes, parts = network["sizes"], network["parameters"]
    vision = sizes["vision"]
    if sizes["num_experts"]:
        width = (
            f"{sizes['num_experts']} experts of {sizes['expert_ffn_hidden_size']}, {sizes['experts_per_token']} a token"
        )
    else:
        width = f"MLP {sizes['ffn_hidden_size']}"
    decoder = (
        f"{sizes['num_layers']} layers of {sizes['hidden_size']}, {sizes['num_heads']} heads in "
        f"{sizes['num_kv_heads']} groups of {sizes['head_dim']}, {width}, vocabulary {sizes['vocab_size']:,}"
    )
    tower = f"tower {vision['num_layers']} layers of {vision['hidden_size']}, DeepStack {vision['deepstack_layers']}"
    tied = "tied" if sizes["tie_embeddings"] else "not tied"
    total = sum(parts.values())
    return [
        ("network", f"{network['architecture']}: {decoder}, output {tied}; {tower}"),
        ("parameters", f"{total:,} = {' + '.join(f'{part} {parts[part]:,}' for part in PARTS)}"),
    ]


def _run(report: dict) -> list[tuple[str, str]]:
    """Step and optimizer of a checkpoint, and the run where there is one; nothing of a Hugging Face directory."""
    run, step, rows = report["run"], report["step"], []
    seen = "" if report["consumed_rows"] is None else f", after {report['consumed_rows']:,} rows"
    if step is not None:
        rows.append(("step", f"{step:,}" + (f" of {run['steps']:,}" if run else "") + seen))
    if run:
        start = run["start_from"] or "seeded random weights"
        rows += [
            ("run", f"{run['recipe'] or 'no recipe'}, seed {run['seed']}, {run['precision']}, started from {start}"),
            ("data", run["data"] or "no path"),
        ]
    if report["grid"]:
        rows.append(("grid", _grid(report["grid"])))
    if step is not None:
        rows.append(("optimizer", "its state is here" if report["has_optimizer"] else "no state of it is here"))
    return rows


def _grid(grid: dict) -> str:
    """World size, every axis that is not 1, and the layers of an uneven first or last stage."""
    shown = [
        f"{name} {size}"
        for name, size in grid.items()
        if name != "world_size" and size is not None and (size != 1 or name.endswith("_layers"))
    ]
    return f"world {grid['world_size']}" + (f": {', '.join(shown)}" if shown else "")


def _provenance(provenance: dict) -> list[tuple[str, str]]:
    """Whatever the writer noted, in its order."""
    return [
        (name, ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value))
        for name, value in provenance.items()
    ]


def _tensor_lines(tensors: list[dict], every_tensor: bool) -> list[str]:
    """A table, and below it the names of the tensors that hold NaN or infinite values."""
    groups = (
        {one["name"]: [one] for one in tensors}
        if every_tensor
        else by_layer(tensors, lambda one: (tuple(one["shape"]), one["dtype"]))
    )
    rows = [[name, _shape(group[0]["shape"]), group[0]["dtype"], *_norms(group)] for name, group in groups.items()]
    titles = ["name", "shape", "dtype", "L2 norm", "largest", "NaN", "inf"][: len(rows[0])]
    spoiled = [one for one in tensors if one.get("num_nan", 0) + one.get("num_inf", 0)]
    return table([titles, *rows]) + [
        f"not finite: {one['name']}: {one['num_nan']:,} NaN, {one['num_inf']:,} infinite of {math.prod(one['shape']):,}"
        for one in spoiled
    ]


def _norms(group: list[dict]) -> list[str]:
    """Range of the norms, largest value, NaN and infinities of tensors in one line; nothing where none were read."""
    if "norm" not in group[0]:
        return []
    low, high = (f"{limit(one['norm'] for one in group):.6g}" for limit in (min, max))
    counts = [f"{sum(one[name] for one in group):,}" for name in ("num_nan", "num_inf")]
    return [low if low == high else f"{low}..{high}", f"{max(one['max_abs'] for one in group):.6g}", *counts]


def table(rows: list[list[str]]) -> list[str]:
    """Rows as lines, each column as wide as its longest entry."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _shape(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def _totals(totals: dict) -> list[str]:
    whole = {name: sum(part[name] for part in totals.values()) for name in ("tensors", "parameters", "bytes")}
    rows = [["part", "tensors", "parameters", "size"]]
    for name, part in {**totals, "all": whole}.items():
        rows.append([name, f"{part['tensors']:,}", f"{part['parameters']:,}", _gigabytes(part["bytes"])])
    return table(rows)


def _counted(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.3f} GB"
