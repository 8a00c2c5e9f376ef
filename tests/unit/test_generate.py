"""`generate`: a question about images, answered by a tiny random network in a directory like an export."""

import pytest

from megatron_medx.errors import CheckpointError
from megatron_medx.generate import generate


def test_a_folder_that_is_no_hugging_face_directory(tmp_path):
    with pytest.raises(CheckpointError, match="no .*config.json"):
        generate(tmp_path, [], "Which?")
