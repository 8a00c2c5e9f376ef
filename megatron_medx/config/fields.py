"""Values checked against the annotations of the configuration's dataclasses.

One table of conversions serves both ways a value comes in: as the text of an override
(`training.freeze=vision,merger`) and as a plain YAML object out of `run.yaml`. Known types: int,
float, bool, str, `X | None`, tuples, dict, and dataclasses of these. A value that does not fit raises
ValueError whose text says what is needed; callers add the key and collect.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable


@functools.cache
def field_types(cls: type) -> dict[str, object]:
    """Return the annotation of every field of a configuration dataclass, in order."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def required_fields(cls: type) -> list[str]:
    """Return the fields of a dataclass that have no default."""
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing]


def keys_of(cls: type, prefix: str = "") -> dict[str, object]:
    """Return every settable key below a dataclass with its annotation: `{"parallel.tensor": int, ...}`."""
    keys: dict[str, object] = {}
    for name, kind in field_types(cls).items():
        if dataclasses.is_dataclass(kind):
            keys |= keys_of(kind, f"{prefix}{name}.")
        else:
            keys[prefix + name] = kind
    return keys


def describe_type(kind: object) -> str:
    """Say in a few words which values an annotation allows."""
    if _options(kind) is not None:
        return f"{describe_type(_options(kind))}, or none"
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        if parts[-1] is Ellipsis:
            return f"a list of {_PLURALS[parts[0]]}, separated by commas (may be empty)"
        return f"{len(parts)} {_PLURALS[parts[0]]}, separated by commas"
    return "a section with fields" if dataclasses.is_dataclass(kind) else _NAMES[kind]


def from_text(text: str, kind: object) -> object:
    """Convert the text of an override to the type a field is annotated with.

    Raises:
        ValueError: the text does not fit; the message says what is needed.
    """
    inner = _options(kind)
    if inner is not None:
        return None if text.lower() in ("none", "null") else _or_none(text, kind, from_text)
    if typing.get_origin(kind) is tuple:
        text = text.strip()
        if text[:1] + text[-1:] in ("[]", "()"):
            text = text[1:-1]
        items = [item.strip() for item in text.split(",")] if text.strip() else []
        return _tuple(items, kind, from_text)
    if kind is str:
        return text
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return _finite(kind(text), kind)
        except ValueError:
            pass
    raise ValueError(describe_type(kind))


def from_plain(value: object, kind: object) -> object:
    """Convert a YAML object to the type a field is annotated with; an int serves as a float, nothing else bends.

    Raises:
        ValueError: the value does not fit; the message says what is needed.
    """
    inner = _options(kind)
    if inner is not None:
        return None if value is None else _or_none(value, kind, from_plain)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(describe_type(kind))
        return _tuple(value, kind, from_plain)
    if typing.get_origin(kind) is dict:
        values = typing.get_args(kind)[1]
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            if values is object or all(type(item) is values for item in value.values()):
                return value
    if kind is float and type(value) in (int, float):
        return _finite(float(value), float)
    if kind in (int, bool, str) and type(value) is kind:  # exact: a bool is no int here
        return value
    raise ValueError(describe_type(kind))


_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict[str, object]: "names with values",
    dict[str, str]: "names with texts",
}
_PLURALS = {int: "whole numbers", float: "numbers", str: "names"}


def _options(kind: object) -> object | None:
    """Return X for the annotation `X | None`, None for any other annotation."""
    if not isinstance(kind, types.UnionType):
        return None
    (inner,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
    return inner


def _or_none(value: object, kind: object, convert: Callable) -> object:
    try:
        return convert(value, _options(kind))
    except ValueError as error:
        raise ValueError(describe_type(kind)) from error


def _tuple(items: list, kind: object, convert: Callable) -> tuple:
    parts = typing.get_args(kind)
    if parts[-1] is Ellipsis:
        parts = (parts[0],) * len(items)
    if len(parts) != len(items):
        raise ValueError(describe_type(kind))
    try:
        return tuple(convert(item, part) for item, part in zip(items, parts, strict=True))
    except ValueError as error:
        raise ValueError(describe_type(kind)) from error


def _finite(value: float, kind: object) -> float:
    if not math.isfinite(value):
        raise ValueError(describe_type(kind))
    return value
