"""Colors of `medx watch`; letters and numbers say the same without them."""

STYLES = ("cyan", "magenta", "yellow", "green", "blue", "red")
"""Of runs, and of the curves of a single one; with more they begin again."""

STATE_STYLES = {"running": "green", "finished": "blue", "stopped": "red", "stale": "red"}
"""Of states; others are yellow."""


def run_letter(number: int) -> str:
    """What the run of a number is called where there are several: a, b, c."""
    return chr(ord("a") + number)
