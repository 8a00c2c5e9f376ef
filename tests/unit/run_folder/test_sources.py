"""What data folders are called."""

import pytest

from megatron_medx.run_folder.sources import source_names


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["data/demo"], ["demo"]),
        (["corpora/reports/train", "/data/replay", "corpora/books/train"], ["reports/train", "replay", "books/train"]),
        (["/a/x/train", "/b/x/train", "x/train"], ["a/x/train", "b/x/train", "x/train"]),
        ([], []),
    ],
)
def test_names_are_as_short_as_tells_them_apart(folders, names):
    assert source_names(folders) == names
