"""Transformer Engine's layers against plain torch ones on a GPU: logits, losses, gradients of every part.

Skipped without a GPU. Written on a machine that has none: not yet run (2026-11-23). What compares them, on the CPU:
tests/unit/benchmarks/test_gpu_specs.py.
"""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def quantities(tmp_path_factory):
    pytest.importorskip("transformer_engine.pytorch")
    out = tmp_path_factory.mktemp("specs") / "specs.json"
    words = [sys.executable, "-m", "benchmarks.gpu.specs", str(out)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["transformer_engine"]
    return found["quantities"]


@pytest.mark.parametrize(
    "quantity", ["logits", "losses", "embedding", "tower", "merger", "DeepStack mergers", "decoder"]
)
def test_the_distance_from_fp32_is_that_of_bf16(quantities, quantity):
    assert quantities[quantity]["within"], quantities[quantity]
    assert quantities[quantity]["te"] > 0  # the two are different kernels, in fewer bits than the reference
