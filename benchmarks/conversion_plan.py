"""The plan of converting the largest published size, as one JSON line: keys of both sides, bytes in bf16, memory.

    python -m benchmarks.conversion_plan

It is what `medx convert to-megatron DIR OUT --dry-run --json FILE` gives for a folder that holds config.json alone; the
very command is run, in this process. `benchmarks.convert` runs this program in a process of its own and holds its
seconds and memory to their targets.
"""

import contextlib
import io
import json
import tempfile
from pathlib import Path

from megatron_medx.checkpoint.hugging_face.hf_config import config_json
from megatron_medx.cli import main as medx
from megatron_medx.config.model import ModelConfig
from megatron_medx.recipes.sizes import QWEN_VOCAB_SIZE, large_tower


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
    """Run the command on the sizes of the largest network and print what its plan holds."""
    with tempfile.TemporaryDirectory(prefix="medx-plan-") as name:
        source, report = Path(name) / "hf", Path(name) / "plan.json"
        source.mkdir()
        (source / "config.json").write_text(json.dumps(config_json(qwen3_vl_235b(), "bfloat16", {})))
        words = ["convert", "to-megatron", str(source), str(Path(name) / "out"), "--dry-run", "--json", str(report)]
        with contextlib.redirect_stdout(io.StringIO()):
            code = medx(words)
        assert code == 0, code
        plan = json.loads(report.read_text())
    keys = {"hf_keys": plan["tensors"]["hf"], "megatron_keys": plan["tensors"]["megatron"]}
    listed = sum(len(one["hf"]) for one in plan["keys"]), len(plan["keys"])
    assert listed == tuple(keys.values()), listed
    sizes = {"bytes": plan["bytes"], "files": len(plan["files"]), "estimated_seconds": plan["time"]["seconds"]}
    print(json.dumps(keys | sizes | {"peak_bytes": peak_bytes()}))


def peak_bytes() -> int:
    """Most resident memory of this program; `ru_maxrss` would count the process that started it, before its `exec`."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
