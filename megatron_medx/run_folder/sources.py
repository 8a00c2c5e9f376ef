"""What the data folders of a mixture are called: the same in metrics.jsonl, on the screen, in reports and trackers."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def source_names(folders: Sequence[str | Path]) -> list[str]:
    """The last part of each path, and as many before it as tell the folders apart.

    Example: `corpora/reports/train`, `/data/replay` and `corpora/books/train` are `reports/train`, `replay` and
    `books/train`.

    Args:
        folders: different ones, as MixtureSource.path and the keys of plan.json's `counts` are.
    """
    paths = [[part for part in Path(folder).parts if part != "/"] for folder in folders]
    names = ["/".join(parts[-1:]) for parts in paths]
    for num_parts in range(2, max(map(len, paths), default=0) + 1):
        seen = Counter(names)
        names = [
            "/".join(parts[-num_parts:]) if seen[name] > 1 else name for name, parts in zip(names, paths, strict=True)
        ]
    return names
