"""The configuration of a run, where it departs from its parent or from its recipe as shipped, and what ran it."""

from dataclasses import fields, is_dataclass

from megatron_medx.config.differences import different_fields
from megatron_medx.config.run import RunConfig
from megatron_medx.recipes import RECIPES, get_recipe
from megatron_medx.report.record import RunRecord
from megatron_medx.report.tables import Table, text_column
from megatron_medx.status.history_lines import clock, hosts_text


def difference_table(run: RunRecord, parent: RunRecord | None) -> Table:
    """Fields that differ from the parent's, or without one from the recipe's; the note says why there are none."""
    other, name = _other(run, parent)
    table = Table([text_column("field"), text_column("this run"), text_column(name)])
    if run.config is None or other is None:
        missing = "The run has no run.yaml yet" if run.config is None else f"There is no {name} to compare with"
        table.note = f"{missing}."
        return table
    table.rows = [[field, _text(one), _text(two)] for field, one, two in different_fields(run.config, other)]
    if not table.rows:
        table.note = f"Every field is as in the {name}."
    return table


def all_settings(config: RunConfig | None) -> dict[str, list[tuple[str, str]]]:
    """Section -> its fields and values, as run.yaml has them."""
    if config is None:
        return {}
    sections = {}
    for section in fields(config):
        value = getattr(config, section.name)
        if is_dataclass(value):
            sections[section.name] = [(name, _text(item)) for name, item in _flat(value)]
        else:
            sections[section.name] = [(str(name), _text(item)) for name, item in value.items()]
    return {name: rows for name, rows in sections.items() if rows}


def machine_rows(run: RunRecord) -> list[tuple[str, str]]:
    """What the run ran on and with: grid, hosts, versions, commit, command."""
    rows = []
    if run.config is not None:
        grid = run.config.parallel
        axes = {
            "tensor": grid.tensor,
            "pipeline": grid.pipeline,
            "context": grid.context,
            "expert": grid.expert,
            "data": grid.data,
        }
        text = " x ".join(f"{name} {size}" for name, size in axes.items() if size > 1 and name != "expert")
        experts = f"; experts over {grid.expert}" if grid.expert > 1 else ""
        rows.append(("ranks", f"{grid.world_size:,}" + (f" = {text}" if text else "") + experts))
    for launch in run.status["launches"][-1:]:
        hosts = launch["hosts"]
        where = f"{len(hosts):,}: {hosts_text(hosts)}" if isinstance(hosts, list) else str(hosts or "not told")
        rows += [("hosts of the last launch", where), ("launched", clock(launch["started"]))]
    versions = run.provenance.get("versions")
    rows += [(str(name), str(version)) for name, version in (versions if isinstance(versions, dict) else {}).items()]
    rows += [(key, str(run.provenance[key])) for key in ("commit", "date", "command") if key in run.provenance]
    return rows


def _other(run: RunRecord, parent: RunRecord | None) -> tuple[RunConfig | None, str]:
    """The configuration to compare with, and what it is called."""
    if parent is not None:
        return parent.config, f"parent {parent.name}"
    recipe = run.config.run.recipe if run.config is not None else ""
    return (get_recipe(recipe) if recipe in RECIPES else None), f"recipe {recipe or 'of a name'} as shipped"


def _flat(section: object, prefix: str = "") -> list[tuple[str, object]]:
    """Name and value of every field; those of dataclasses within one by `outer.inner`."""
    found = []
    for field in fields(section):
        value = getattr(section, field.name)
        inner = is_dataclass(value)
        found += _flat(value, f"{prefix}{field.name}.") if inner else [(f"{prefix}{field.name}", value)]
    return found


def _text(value: object) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)
