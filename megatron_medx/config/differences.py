"""Where two configurations differ, named field by field."""

from dataclasses import fields, is_dataclass


def differences(first: object, second: object, names: tuple[str, str] = ("", ""), prefix: str = "") -> list[str]:
    """Every field with two values, as `model.num_layers 4 and 6`.

    Args:
        first, second: dataclasses of one type.
        names: what to call each side, e.g. ("in the checkpoint", "asked for"); empty for the values alone.
        prefix: put before each field's name.
    """
    found = []
    for field in fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if is_dataclass(one):
            found += differences(one, other, names, f"{prefix}{field.name}.")
        elif one != other:
            sides = (f"{value} {name}".strip() for value, name in zip((one, other), names, strict=True))
            found.append(f"{prefix}{field.name} {' and '.join(sides)}")
    return found
