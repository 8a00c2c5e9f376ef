"""Numbers as a person reads them."""


def duration(time_s: float) -> str:
    """`45 s`, `12 min 5 s`, `3 h 12 min`, `2 d 4 h`: the two largest units; nothing below 0."""
    whole = max(0, round(time_s))
    minutes, seconds = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    counts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next((number for number, (count, _) in enumerate(counts) if count), len(counts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in counts[first : first + 2])


def bytes_text(number: int) -> str:
    """Megabytes, from 1 GB on gigabytes; powers of ten."""
    return f"{number / 1e9:.3f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def counted(number: int, word: str) -> str:
    """`1 step`, `2,000 steps`."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")
