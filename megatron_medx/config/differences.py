"""Where two configurations differ, named field by field."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass


def differences(first: object, second: object, names: tuple[str, str] = ("", ""), prefix: str = "") -> list[str]:
    """Every field with two values, as `model.num_layers 4 and 6`.

    Args:
        first, second: dataclasses of one type.
        names: what to call each side, e.g. ("in the checkpoint", "asked for"); empty for the values alone.
        prefix: put before each field's name.
    """
    found = []
    for name, *values in different_fields(first, second):
        sides = (f"{value} {side}".strip() for value, side in zip(values, names, strict=True))
        found.append(f"{prefix}{name} {' and '.join(sides)}")
    return found


def different_fields(first: object, second: object) -> Iterator[tuple[str, object, object]]:
    """Name, as `model.num_layers`, and both values of every field with two.

    Args:
        first, second: dataclasses of one type.
    """
    for field in fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if is_dataclass(one):
            yield from ((f"{field.name}.{name}", *values) for name, *values in different_fields(one, other))
        elif one != other:
            yield field.name, one, other
