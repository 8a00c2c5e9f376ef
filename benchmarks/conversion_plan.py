"""The plan of converting the largest published size, as one JSON line: keys of both sides, bytes in bf16.

    python -m benchmarks.conversion_plan

`benchmarks.convert` runs it in a process of its own and holds its seconds and memory to their targets.
"""

import json
import math
from pathlib import Path

from megatron_medx.checkpoint.rules import bindings, hf_shapes, megatron_shapes
from megatron_medx.config.model import ModelConfig
from megatron_medx.recipes.sizes import QWEN_VOCAB_SIZE, large_tower

BF16_BYTES = 2


def qwen3_vl_235b() -> ModelConfig:
    """Qwen3-VL-235B-A22B; sizes from memory."""
    return ModelConfig(
        vision=large_tower(),
        hidden_size=4096,
        num_layers=94,
        num_heads=64,
        num_kv_heads=4,
        head_dim=128,
        ffn_hidden_size=12288,
        num_experts=128,
        experts_per_token=8,
        expert_ffn_hidden_size=1536,
        vocab_size=QWEN_VOCAB_SIZE,
        mrope_section=(24, 20, 20),
    )


def main() -> None:
    """List every key and shape of both sides and print how many there are, and their bytes."""
    bound = bindings(qwen3_vl_235b())
    hf, megatron = hf_shapes(bound), megatron_shapes(bound)
    num_bytes = [BF16_BYTES * sum(map(math.prod, shapes.values())) for shapes in (hf, megatron)]
    assert num_bytes[0] == num_bytes[1], num_bytes
    plan = {"hf_keys": len(hf), "megatron_keys": len(megatron), "bytes": num_bytes[0]}
    print(json.dumps(plan | {"peak_bytes": peak_bytes()}))


def peak_bytes() -> int:
    """Most resident memory of this program; `ru_maxrss` would count the process that started it, before its `exec`."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
