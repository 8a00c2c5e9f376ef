"""How evenly images of a row are dealt to the ranks of the first stage, by estimated cost and by the clock.

    python -m benchmarks.vision_balance

Rivals: round robin, image k to rank k mod 8; and a tower that every rank computes whole. Limit: no deal of whole images
is below the mean or below the costliest image. Target: the slowest of 8 ranks within 10 % of the mean estimated cost.

Every figure is the slowest rank's cost over the mean rank's, both summed over microbatches: ranks wait for one another
in each. The longer side of an image is log-normal (median 256 px, one in fifty at the upper end), its shape awkward.
A few large ones hold most of the cost, so a microbatch of few images cannot be balanced by any deal: the table shows
from where on it can. The target is asked of rows of 256 images, some 58,000 image tokens.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch

from megatron_medx.config.flops import image_flops
from megatron_medx.config.model import ModelConfig
from megatron_medx.data.image_grid import smart_resize
from megatron_medx.parallel.image_dealing import deal_images
from megatron_medx.recipes.demo import demo_model
from megatron_medx.recipes.sizes import qwen3_vl_8b

NUM_RANKS = 8

TARGET = 1.10
"""Largest cost of the slowest rank over the mean that passes."""

SMALLEST_PX, LARGEST_PX = 64, 2048

TABLE_IMAGES = (16, 32, 64, 128, 256, 512)
"""Images per microbatch of the table."""

TIMED_MICROBATCHES = 2

TIMED_SHRINK = 2
"""Images are timed at half their sides: at full size a CPU would need minutes for the largest."""

Grid = tuple[int, int]
"""Height and width of an image in patches."""


def skewed_grids(count: int, shrink: int = 1) -> list[Grid]:
    """Patches of `count` seeded images: many small, few huge, up to 8 times as long as wide.

    Args:
        count: of images; the first are the same whatever the count.
        shrink: sides are divided by this.
    """
    # one stream a quantity: a longer list begins with the shorter one
    side, shape, turned = (np.random.Generator(np.random.Philox([7, stream])) for stream in range(3))
    longer = np.clip(256 * np.exp(side.normal(0, 1, count)), SMALLEST_PX, LARGEST_PX) / shrink
    shorter = longer / np.minimum(np.exp(np.abs(shape.normal(0, 0.5, count))), 8)
    is_wide = turned.random(count) < 0.5
    vision = qwen3_vl_8b().vision
    limits = {"min_pixels": (SMALLEST_PX // shrink) ** 2, "max_pixels": (LARGEST_PX // shrink) ** 2}
    grids = []
    for long_px, short_px, wide in zip(longer, shorter, is_wide, strict=True):
        sides = (short_px, long_px) if wide else (long_px, short_px)
        tall_px, wide_px = smart_resize(*map(round, sides), vision.token_side_px, **limits)
        grids.append((tall_px // vision.patch_size, wide_px // vision.patch_size))
    return grids


def estimated_costs(model: ModelConfig, grids: Sequence[Grid]) -> list[int]:
    """Forward FLOPs of each image in tower and mergers."""
    cost = cache(lambda patches: image_flops(model, patches))
    return [cost(height * width) for height, width in grids]


def deals(costs: Sequence[int]) -> dict[str, list[list[int]]]:
    """Images of each rank, by the way of sharing them."""
    everything = list(range(len(costs)))
    return {
        "dealt": deal_images(costs, NUM_RANKS),
        "round_robin": [everything[rank::NUM_RANKS] for rank in range(NUM_RANKS)],
        "whole": [everything] * NUM_RANKS,
    }


def estimated_balance(costs: Sequence[int], images_per_microbatch: int, num_microbatches: int) -> dict[str, float]:
    """Slowest rank's cost over the mean, for each way of sharing and for the limit (`limit`).

    The mean is that of shared images: a tower that is whole on every rank has the number of ranks.
    """
    totals, mean = dict.fromkeys(("dealt", "round_robin", "whole", "limit"), 0), 0.0
    for number in range(num_microbatches):
        of_row = costs[number * images_per_microbatch :][:images_per_microbatch]
        mean += sum(of_row) / NUM_RANKS
        totals["limit"] += max(max(of_row), sum(of_row) / NUM_RANKS)
        for way, shares in deals(of_row).items():
            totals[way] += max(sum(of_row[image] for image in share) for share in shares)
    return {way: total / mean for way, total in totals.items()}


def measured_seconds(images_per_microbatch: int, num_microbatches: int) -> dict[str, float]:
    """Seconds of the slowest rank, summed over microbatches: the demo's tower and mergers, forward, one thread a rank.

    Ranks run one after the other in this process, each with its own images and nothing else. Processor time is counted:
    with one thread it is what an idle core takes, whatever else runs on the machine. `mean` is of the dealt ranks.
    """
    model = demo_model()
    torch.set_num_threads(1)
    encode = _tower(model)
    encode([(64, 64)])  # the first call is slow
    seconds = dict.fromkeys(("dealt", "round_robin", "whole", "mean"), 0.0)
    all_grids = skewed_grids(images_per_microbatch * num_microbatches, TIMED_SHRINK)
    for number in range(num_microbatches):
        grids = all_grids[number * images_per_microbatch :][:images_per_microbatch]
        for way, shares in deals(estimated_costs(model, grids)).items():
            ranks = shares[:1] if way == "whole" else shares  # all do the same
            spent = [encode([grids[image] for image in share]) for share in ranks]
            seconds[way] += max(spent)
            if way == "dealt":
                seconds["mean"] += sum(spent) / NUM_RANKS
    return seconds


def _tower(model: ModelConfig) -> Callable[[list[Grid]], float]:
    """A function: grids of images -> seconds that tower and mergers take for them."""
    warnings.filterwarnings("ignore", module="megatron")  # about what is not installed here
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()  # before the modules of Megatron that the others import
    from megatron_medx.models.megatron_config import decoder_config, tower_config
    from megatron_medx.models.merger import Mergers
    from megatron_medx.models.specs import layer_specs
    from megatron_medx.models.vision import VisionTower
    from megatron_medx.parallel.groups import solo_groups, start_alone

    start_alone()
    config = decoder_config(model)
    tower = VisionTower(model, tower_config(model, config), layer_specs(model, False), solo_groups()).eval()
    mergers = Mergers(model, config)

    @torch.no_grad()
    def encode(grids: list[Grid]) -> float:
        if not grids:
            return 0.0
        grids_I3 = torch.tensor([(1, *grid) for grid in grids])
        pixels_PC = torch.rand(int(grids_I3.prod(dim=1).sum()), model.vision.patch_dim)
        start_s = time.thread_time()
        mergers(*tower(pixels_PC, grids_I3))
        return time.thread_time() - start_s

    return encode


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables and one JSON line; 0 when the target is reached, 1 when it is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vision_balance", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256, help="images per microbatch (default %(default)s)")
    parser.add_argument("--microbatches", type=int, default=300, help="for the estimates (default %(default)s)")
    parser.add_argument("--no-time", action="store_true", help="estimates only")
    chosen = parser.parse_args(arguments)

    model = qwen3_vl_8b()
    grids = skewed_grids(max(chosen.images, *TABLE_IMAGES) * chosen.microbatches)
    costs = estimated_costs(model, grids)
    patches = [height * width for height, width in grids]
    tokens_per_image = sum(patches) / len(patches) / model.vision.merge_size**2
    print(f"Images of {SMALLEST_PX} to {LARGEST_PX} px on {NUM_RANKS} ranks, {chosen.microbatches} microbatches each")
    print("Estimated cost (tower of Qwen3-VL-8B) of the slowest rank over the mean\n")
    print("images per microbatch   image tokens   dealt   round robin   limit")
    for images in TABLE_IMAGES:
        found = estimated_balance(costs, images, chosen.microbatches)
        tokens = f"{images * tokens_per_image:,.0f}"
        print(
            f"{images:21}   {tokens:>12}   {found['dealt']:5.2f}   {found['round_robin']:11.2f}   {found['limit']:5.2f}"
        )
    result = estimated_balance(costs, chosen.images, chosen.microbatches)
    seconds = None if chosen.no_time else measured_seconds(chosen.images, TIMED_MICROBATCHES)
    reached = result["dealt"] <= TARGET
    _print_result(chosen.images, result, seconds)
    print(f"\ntarget: dealt <= {TARGET:.2f}: {'reached' if reached else 'MISSED'} with {result['dealt']:.3f}")
    rounded = {way: round(value, 4) for way, value in result.items()}
    summary = {"benchmark": "vision_balance", "ranks": NUM_RANKS, "images_per_microbatch": chosen.images}
    summary |= {"microbatches": chosen.microbatches, **rounded, "target": TARGET, "reached": reached}
    summary["ratio_to_round_robin"] = round(result["dealt"] / result["round_robin"], 4)
    summary["seconds"] = seconds and {way: round(value, 3) for way, value in seconds.items()}
    print(json.dumps(summary))
    return 0 if reached else 1


def _print_result(images: int, result: dict[str, float], seconds: dict[str, float] | None) -> None:
    """Three ways of sharing beside one another; times only if measured."""
    print(f"\n{images} images per microbatch      slowest / mean   over dealt" + "   time of slowest" * bool(seconds))
    for way, name in (("dealt", "dealt (ours)"), ("round_robin", "round robin"), ("whole", "whole on every rank")):
        line = f"{name:30}   {result[way]:14.3f}   {result[way] / result['dealt']:9.2f}x"
        if seconds:
            line += f"   {seconds[way]:7.2f} s {seconds[way] / seconds['dealt']:5.2f}x"
        print(line)
    print(f"{'limit (costliest image, mean)':30}   {result['limit']:14.3f}")
    if seconds:
        unevenness = seconds["dealt"] / seconds["mean"]
        print(f"\nProcessor time of the demo's tower, forward, one thread a rank, {TIMED_MICROBATCHES} microbatches,")
        print(f"images at 1/{TIMED_SHRINK} of their sides; slowest dealt rank over the mean: {unevenness:.2f}")


if __name__ == "__main__":
    sys.exit(main())
