"""Processor time of decoding images to patches: ours against the stock image processor, DALI against Pillow.

    python -m benchmarks.decode

Rivals: of our Pillow path, the stock Qwen image processor on what Pillow decodes; of DALI's decoder, Pillow's; all on
one thread of a CPU. Targets: ours not slower than the stock one; DALI's decoder not slower than Pillow's. DALI from
files to patches stands beside ours without a target: its gain is expected on a GPU, which is not measured here.

Images are made here: smooth colors with noise, sides of 512 to 1,024 px, five JPEGs to one PNG. Scaled to at most
512 x 512 px. All ways run after one another in each round, and a ratio is the median over rounds, so that what else
runs on the machine falls on all alike.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from megatron_medx.data.dali_decoder import DaliDecoder, decode
from megatron_medx.data.decoding import ImageRequest, PillowDecoder
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.view import AS_STORED
from megatron_medx.data.patches import Patcher

SMALLEST_PX, LARGEST_PX = 512, 1024

JPEGS_PER_PNG = 5

RATIOS = {
    "stock_over_ours": ("stock", "ours"),
    "jpeg_pillow_over_dali": ("jpeg_pillow", "jpeg_dali"),
    "png_pillow_over_dali": ("png_pillow", "png_dali"),
    "ours_over_dali": ("ours", "dali"),
}
"""Rival and what it is compared with; above 1 the rival takes longer."""

TARGETS = {"stock_over_ours": 1.0, "jpeg_pillow_over_dali": 1.0, "png_pillow_over_dali": 1.0}
"""Least ratio that passes."""

WAYS = {
    "ours": "files to patches, Pillow (ours)",
    "stock": "files to patches, stock image processor",
    "dali": "files to patches, DALI (ours)",
    "jpeg_pillow": "decoding JPEGs alone, Pillow",
    "jpeg_dali": "decoding JPEGs alone, DALI",
    "png_pillow": "decoding PNGs alone, Pillow",
    "png_dali": "decoding PNGs alone, DALI",
}
"""What is timed, and its line of the table."""

Way = tuple[Callable[[], object], int]
"""A function without arguments that goes through images, and how many."""


def make_corpus(count: int) -> list[bytes]:
    """`count` seeded image files, JPEG (quality 85) and PNG; the first are the same whatever the count."""
    files = []
    for number in range(count):
        random = np.random.Generator(np.random.Philox([11, number]))
        width, height = random.integers(SMALLEST_PX, LARGEST_PX + 1, 2).tolist()
        coarse = random.integers(0, 256, (height // 32 + 2, width // 32 + 2, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        noisy = smooth + random.integers(-6, 7, smooth.shape)
        is_png = number % (JPEGS_PER_PNG + 1) == JPEGS_PER_PNG
        saved = BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(saved, "PNG" if is_png else "JPEG", quality=85)
        files.append(saved.getvalue())
    return files


def ways_of(files: Sequence[bytes]) -> dict[str, Way]:
    """What each of WAYS does, over all files or those of a kind."""
    size = {"shortest_edge": 65536, "longest_edge": 512 * 512}
    half = [0.5, 0.5, 0.5]
    stock = Qwen2VLImageProcessorPil(patch_size=16, size=size, image_mean=half, image_std=half)
    patcher = Patcher(stock)
    requests = [
        ImageRequest(ImageFile(str(number), content), AS_STORED, patcher.grid(*Image.open(BytesIO(content)).size))
        for number, content in enumerate(files)
    ]
    pillow, dali = PillowDecoder(patcher), DaliDecoder(patcher, num_threads=1)
    dali.device_id = None  # the CPU, also where there is a GPU
    ways: dict[str, Way] = {
        "ours": (lambda: pillow.patches(requests), len(files)),
        "stock": (
            lambda: [stock(images=Image.open(BytesIO(content)), return_tensors="pt") for content in files],
            len(files),
        ),
        "dali": (lambda: dali.patches(requests), len(files)),
    }
    pngs = list(files[JPEGS_PER_PNG :: JPEGS_PER_PNG + 1])
    for kind, of_kind in (("jpeg", [content for content in files if content not in pngs]), ("png", pngs)):
        ways[f"{kind}_pillow"] = _pillow_decode(of_kind), len(of_kind)
        ways[f"{kind}_dali"] = _dali_decode(of_kind), len(of_kind)
    return ways


def _pillow_decode(files: Sequence[bytes]) -> Callable[[], object]:
    """Pillow's decoder alone; the pictures are RGB as they are stored."""
    return lambda: [Image.open(BytesIO(content)).load() for content in files]


def _dali_decode(files: Sequence[bytes]) -> Callable[[], object]:
    """DALI's decoder alone, one thread, all files at once."""

    @pipeline_def(batch_size=len(files), num_threads=1, device_id=None, prefetch_queue_depth=1)
    def graph():
        return decode(fn.external_source(name="content", dtype=types.UINT8, ndim=1), on_gpu=False)

    pipeline = graph()
    pipeline.build()

    def run() -> object:
        pipeline.feed_input("content", [np.frombuffer(content, np.uint8) for content in files])
        return pipeline.run()

    return run


def measure(ways: dict[str, Way], num_rounds: int) -> dict[str, list[float]]:
    """Milliseconds of processor time an image, of each way in each round; all threads of this process count."""
    for run, _ in ways.values():
        run()  # the first call is slow
    milliseconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(num_rounds):
        for name, (run, num_images) in ways.items():
            start_s = time.process_time()
            run()
            milliseconds[name].append(1e3 * (time.process_time() - start_s) / num_images)
    return milliseconds


def ratios(milliseconds: dict[str, list[float]]) -> dict[str, float]:
    """Of each of RATIOS the median over rounds."""
    return {
        name: statistics.median(a / b for a, b in zip(milliseconds[rival], milliseconds[own], strict=True))
        for name, (rival, own) in RATIOS.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and one JSON line; 0 when both targets are reached, 1 when one is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=36, help="at least 6 (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="default %(default)s")
    chosen = parser.parse_args(arguments)

    torch.set_num_threads(1)
    files = make_corpus(chosen.images)
    milliseconds = measure(ways_of(files), chosen.rounds)
    found = ratios(milliseconds)
    all_reached = all(found[name] >= target for name, target in TARGETS.items())
    medians_ms = {name: statistics.median(values) for name, values in milliseconds.items()}
    average_kb = sum(map(len, files)) / len(files) / 1e3
    print(f"{len(files)} images of {average_kb:.0f} kB on average, {chosen.rounds} rounds, one thread")
    print(f"\n{'ms of processor time an image':42}   median    best")
    for name, words in WAYS.items():
        print(f"{words:42}   {medians_ms[name]:6.2f}  {min(milliseconds[name]):6.2f}")
    print()
    for name, ratio in found.items():
        verdict = "no target"
        if name in TARGETS:
            verdict = f"target >= {TARGETS[name]:.2f}: {'reached' if ratio >= TARGETS[name] else 'MISSED'}"
        print(f"{name:25} {ratio:.2f}   {verdict}")
    summary = {"benchmark": "decode", "images": len(files), "rounds": chosen.rounds, "image_kb": round(average_kb, 1)}
    summary["median_ms"] = {name: round(value, 3) for name, value in medians_ms.items()}
    summary |= {name: round(value, 3) for name, value in found.items()}
    print(json.dumps(summary | {"targets": TARGETS, "reached": all_reached}))
    return 0 if all_reached else 1


if __name__ == "__main__":
    sys.exit(main())
