"""Overrides `section.field=value`: one syntax for every key, checked against the field's type.

In: the words after the recipe on the command line. Out: a changed copy of the RunConfig. Every
word that is wrong is reported in one ConfigError, an unknown key with the nearest one that exists.
Names below `megatron.` pass through untyped: their values are read as YAML scalars or lists. Below a field that is a
table of texts, such as `data.validation_sets`, a name is set with `FIELD.NAME=TEXT` and taken out with `FIELD.NAME=`.
"""

import copy
import functools

import yaml

from megatron_medx.config.fields import field_types, from_text, keys_of
from megatron_medx.config.megatron_names import OURS
from megatron_medx.config.problems import Problem, nearest, raise_problems
from megatron_medx.config.run import RunConfig


def apply_overrides(config: RunConfig, overrides: list[str]) -> RunConfig:
    """Return a copy of `config` with every `section.field=value` applied; the last of two for one key wins.

    Raises:
        ConfigError: one or more overrides are malformed, unknown or of the wrong type; all are named.
    """
    changed = copy.deepcopy(config)
    problems = [problem for text in overrides if (problem := _apply(changed, text)) is not None]
    raise_problems(problems)
    return changed


def unknown_key(key: str) -> Problem:
    """Describe a key that does not exist and name the one that was probably meant."""
    known = keys_of(RunConfig)
    ending = key.rsplit(".", 1)[-1].replace("-", "_")
    is_megatrons = ending in OURS and not any(name.endswith("." + ending) for name in known)
    guess = OURS[ending] if is_megatrons and OURS[ending] in known else nearest(key, known)
    if guess:
        return Problem(f"unknown key {key}", f"a key of the configuration, such as {guess}", f"did you mean {guess}?")
    sections = ", ".join(field_types(RunConfig))
    return Problem(
        f"unknown key {key}",
        f"section.field, where section is one of {sections}",
        "see megatron_medx/config/run.py and model.py for every field, "
        "or write megatron.NAME=VALUE for an argument of Megatron",
    )


def _apply(config: RunConfig, text: str) -> Problem | None:
    """Apply one override in place, or say what is wrong with it."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals:
        return Problem(f"override {text!r} without '='", "section.field=value", "write for instance training.steps=5")
    if key.startswith("megatron."):
        return _pass_through(config, key.removeprefix("megatron."), value)
    keys = keys_of(RunConfig)
    for table in (name for name, kind in keys.items() if kind == dict[str, str] and key.startswith(f"{name}.")):
        return _name_in_table(_field(config, table), table, key.removeprefix(f"{table}."), value)
    kind = keys.get(key)
    if kind is None or key == "megatron":
        return _section_or_unknown(key)
    if kind == dict[str, str]:
        return Problem(f"{key}={value}", f"{key} has names below it", f"write {key}.NAME={value or 'VALUE'}")
    try:
        converted = from_text(value, kind)
    except ValueError as error:
        return Problem(f"{key}={value}", f"{key} is {error}", f"change the value after {key}=")
    section, _, field = key.rpartition(".")
    setattr(_field(config, section), field, converted)
    return None


def _field(config: RunConfig, key: str) -> object:
    """The section or value of a key that exists."""
    return functools.reduce(getattr, key.split("."), config)


def _name_in_table(table: dict[str, str], key: str, name: str, value: str) -> Problem | None:
    """Set one name of a field that is a table, or take it out where the value is empty."""
    if value:
        table[name] = value
    elif name not in table:
        there = ", ".join(table) or "none"
        return Problem(f"{key}.{name}= would take {name} out", f"a name that is there: {there}", "correct the name")
    else:
        del table[name]
    return None


def _section_or_unknown(key: str) -> Problem:
    below = [known for known in keys_of(RunConfig) if known.startswith(key + ".")]
    if not below and key != "megatron":
        return unknown_key(key)
    fields = ", ".join(name.removeprefix(f"{key}.") for name in below) or "any of Megatron's"
    return Problem(
        f"{key} is a section, not a field",
        f"the name of a field below it: {fields}",
        f"write {key}.FIELD=VALUE",
    )


def _pass_through(config: RunConfig, name: str, value: str) -> Problem | None:
    """Store a Megatron argument under its own name; dashes are taken as underscores, as Megatron's parser does."""
    name = name.replace("-", "_")
    if not name.isidentifier():
        return Problem(f"megatron.{name}", "one Megatron argument after megatron.", "write megatron.NAME=VALUE")
    try:
        parsed = yaml.safe_load(value)
        # YAML 1.1 reads 1e-4 as a text; nobody writes that and means a text
        config.megatron[name] = float(parsed) if isinstance(parsed, str) and _is_number(parsed) else parsed
    except yaml.YAMLError:
        return Problem(
            f"megatron.{name}={value}",
            "a YAML value: a number, true, false, null, a text or [a, list]",
            "put quotes around the value if it is a text with special characters",
        )
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.lower() not in ("nan", "inf", "infinity")
