"""Images a second from JPEG files to patches: DALI on the GPU against Pillow on the CPU, and DALI on the CPU.

    python -m benchmarks.gpu.decode OUT_JSON

The same code as in training (data/dali_decoder.py, data/decoding.py) on rows of 16 images; wall time, for on the GPU
processor time says little. Pillow's uses one thread, as each of `data.num_workers` does. Images: benchmarks/decode.py,
JPEGs alone. `gpu_decode` of one process is to be compared with Pillow's figure times the workers that a rank has.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

ROW_IMAGES, NUM_IMAGES = 16, 96

WAYS = ("pillow", "dali_cpu", "dali_gpu")


def measure(decode: Callable[[Sequence], object], rows: Sequence[Sequence], rounds: int) -> float:
    """Images a second, the median over rounds; a round before them warms up."""
    rates = []
    for _ in range(rounds + 1):
        began_s = time.perf_counter()
        for row in rows:
            decode(row)
        rates.append(sum(map(len, rows)) / (time.perf_counter() - began_s))
    return statistics.median(rates[1:])


def decoders(patcher) -> dict[str, Callable[[Sequence], object]]:
    """Of each of WAYS that this machine has, the function that turns requests into patches."""
    import torch

    from megatron_medx.data.dali_decoder import DaliDecoder
    from megatron_medx.data.decoding import PillowDecoder

    on_cpu = DaliDecoder(patcher, num_threads=1)
    on_cpu.device_id = None
    found = {"pillow": PillowDecoder(patcher).patches, "dali_cpu": on_cpu.patches}
    if torch.cuda.is_available():
        found["dali_gpu"] = DaliDecoder(patcher).patches
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.decode", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(arguments)
    import torch
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from benchmarks.decode import make_corpus
    from megatron_medx.data.decoding import ImageRequest
    from megatron_medx.data.images.image_file import ImageFile
    from megatron_medx.data.images.view import AS_STORED
    from megatron_medx.data.patches import Patcher

    torch.set_num_threads(1)
    size, half = {"shortest_edge": 65536, "longest_edge": 768 * 768}, [0.5, 0.5, 0.5]
    patcher = Patcher(Qwen2VLImageProcessorPil(patch_size=16, size=size, image_mean=half, image_std=half))
    files = [file for file in make_corpus(chosen.images * 6 // 5 + 1) if file.startswith(b"\xff\xd8")][: chosen.images]
    requests = [
        ImageRequest(ImageFile(str(number), file), AS_STORED, patcher.grid(*Image.open(BytesIO(file)).size))
        for number, file in enumerate(files)
    ]
    rows = [requests[first : first + ROW_IMAGES] for first in range(0, len(requests), ROW_IMAGES)]
    found = {way: measure(decode, rows, chosen.rounds) for way, decode in decoders(patcher).items()}
    facts = {"images": len(files), "image_kb": sum(map(len, files)) / len(files) / 1e3, "cores": os.cpu_count()}
    chosen.out.write_text(json.dumps(facts | {"images_per_s": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
