"""DALI's decoder against Pillow's, on the CPU: same pixels decoded, nearly the same patches, same errors."""

import json
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is optional")

from nvidia.dali import fn, pipeline_def, types

from megatron_medx.data import dali_decoder
from megatron_medx.data.dali_decoder import DaliDecoder, decode
from megatron_medx.data.decoder_choice import make_decoder
from megatron_medx.data.decoding import ImageRequest, PillowDecoder
from megatron_medx.data.images.files import read_image
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.view import AS_STORED, ImageView
from megatron_medx.data.patches import Patcher
from megatron_medx.errors import ConfigError, DataError

WIDTH, HEIGHT = 96, 64
"""Of the pictures of `kinds`: multiples of 32, so that patches of their own size need no scaling."""


def photo(width, height, seed=3):
    """Smooth colors and some noise."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    return Image.fromarray((smooth + random.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8))


def saved(image, kind, **options):
    content = BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def deep_rgb_png():
    """16 bits a color, which Pillow reads but does not write."""
    rows = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(">u2")
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def kinds_of_dali():
    """Files that DALI itself decodes."""
    image, gray = photo(WIDTH, HEIGHT), photo(WIDTH, HEIGHT).convert("L")
    jpegs = {
        "4:4:4": {"subsampling": 0, "quality": 90},
        "4:2:2": {"subsampling": 1, "quality": 95},
        "4:2:0": {"subsampling": 2, "quality": 75},
        "4:1:1": {"subsampling": "4:1:1"},
        "progressive": {"progressive": True},
        "coarse": {"quality": 12},
        "RGB inside": {"keep_rgb": True},
        "upright by EXIF": {"exif": turned(1)},
    }
    return {
        **{f"JPEG {name}": saved(image, "JPEG", **options) for name, options in jpegs.items()},
        "JPEG gray": saved(gray, "JPEG"),
        "JPEG gray progressive": saved(gray, "JPEG", progressive=True),
        "PNG": saved(image, "PNG"),
        "PNG gray": saved(gray, "PNG"),
        "PNG palette": saved(image.quantize(200), "PNG"),
        "PNG palette of 4 bits": saved(image.quantize(13), "PNG"),
        "PNG of 1 bit": saved(image.convert("1"), "PNG"),
        "WebP": saved(image, "WEBP"),
        "WebP lossless": saved(image, "WEBP", lossless=True),
    }


def kinds_of_pillow():
    """Files that are decoded by `read_image` and enter DALI as pixels."""
    image, gray = photo(WIDTH, HEIGHT), photo(WIDTH, HEIGHT).convert("L")
    inks = Image.merge("CMYK", (*image.split(), gray))
    with_alpha = image.copy()
    with_alpha.putalpha(gray)
    upright = {orientation: image if orientation < 5 else image.rotate(90, expand=True) for orientation in range(2, 9)}
    xmp = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/"><a tiff:Orientation="3"/></x>'
    return {
        **{f"JPEG EXIF {value}": saved(stored, "JPEG", exif=turned(value)) for value, stored in upright.items()},
        "PNG EXIF 3": saved(image, "PNG", exif=turned(3)),
        "WebP EXIF 3": saved(image, "WEBP", exif=turned(3)),
        "JPEG XMP 3": saved(image, "JPEG", xmp=xmp),
        "JPEG CMYK": saved(inks, "JPEG"),
        "PNG alpha": saved(with_alpha, "PNG"),
        "PNG gray alpha": saved(with_alpha.convert("LA"), "PNG"),
        "PNG palette alpha": saved(image.quantize(60), "PNG", transparency=3),
        "PNG transparent color": saved(image, "PNG", transparency=(1, 2, 3)),
        "WebP alpha": saved(with_alpha, "WEBP"),
        "PNG gray of 16 bits": saved(Image.fromarray(np.asarray(gray).astype(np.uint16) * 197), "PNG"),
        "PNG color of 16 bits": deep_rgb_png(),
        "PNG of two frames": saved(image, "PNG", save_all=True, append_images=[image.rotate(180)]),
        "TIFF": saved(image, "TIFF"),
        "BMP": saved(image, "BMP"),
    }


@pytest.fixture(scope="module")
def patcher(demo):
    return Patcher.from_directory(demo / "processor", 4096, 25600)


@pytest.fixture(scope="module")
def decoder(patcher):
    return DaliDecoder(patcher, num_threads=2)


@pytest.fixture
def read_by_pillow(monkeypatch):
    """Names of the files that the decoder has read with Pillow."""
    names = []

    def read(file, *arguments, **options):
        names.append(file.name)
        return read_image(file, *arguments, **options)

    monkeypatch.setattr(dali_decoder, "read_image", read)
    return names


def request_of(patcher, image, name="image", **options):
    """A request at the size the stock processor would choose."""
    return ImageRequest(ImageFile(name, saved(image, "PNG", **options)), AS_STORED, patcher.grid(*image.size))


def gray_levels(ours, reference):
    """Mean and largest distance of patches in gray levels of 255; patches run from -1 to 1."""
    distances = (ours - reference).abs() * 127.5
    return float(distances.mean()), float(distances.max())


@pytest.mark.parametrize("of_pillow", [False, True])
def test_every_kind_is_decoded_as_pillow_decodes_it(patcher, decoder, read_by_pillow, of_pillow):
    kinds = kinds_of_pillow() if of_pillow else kinds_of_dali()
    requests = [ImageRequest(ImageFile(kind, content), AS_STORED, (1, 4, 6)) for kind, content in kinds.items()]
    for request, pixels_PC in zip(requests, decoder.patches(requests), strict=True):
        shown = np.asarray(patcher.unpatchify(pixels_PC, torch.tensor(request.grid)))
        assert np.array_equal(shown, np.asarray(read_image(request.file))), request.file.name
    assert read_by_pillow == (list(kinds) if of_pillow else [])


def test_jpegs_of_awkward_sizes_are_decoded_bit_for_bit():
    """Where colors are stored at half the size, odd edges and tiny pictures are where decoders differ."""

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def graph():
        return decode(fn.external_source(name="content", dtype=types.UINT8, ndim=1), on_gpu=False)

    pipeline = graph()
    pipeline.build()
    sizes = [(1, 1), (2, 3), (7, 9), (8, 8), (15, 17), (16, 33), (301, 203), (127, 64)]
    for width, height in sizes:
        for options in ({"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}):
            content = saved(photo(width, height), "JPEG", quality=60 + width % 40, **options)
            pipeline.feed_input("content", [np.frombuffer(content, np.uint8)])
            decoded = np.array(pipeline.run()[0].at(0))
            assert np.array_equal(decoded, np.asarray(read_image(ImageFile("a.jpg", content)))), (width, height)


def test_patches_are_within_a_gray_level_of_pillows(patcher, decoder):
    """Mean distance below 1/255 of the range of pixels, for pictures made larger and smaller.

    Measured, worst of these and 25 random sizes: noise, the hardest for a resampler, 0.52 levels, single values 18;
    smooth pictures 0.23 levels, single values 2.
    """
    sizes = [(900, 700), (47, 31), (64, 64), (300, 2000), (512, 512), (1400, 1000), (301, 300), (33, 1500), (80, 16)]
    for make, mean_bound, max_bound in ((photo, 0.3, 2.5), (noise, 0.6, 19.0)):
        requests = [request_of(patcher, make(width, height)) for width, height in sizes]
        references = PillowDecoder(patcher).patches(requests)
        for size, ours, reference in zip(sizes, decoder.patches(requests), references, strict=True):
            assert ours.shape == reference.shape and ours.dtype == torch.float32 and ours.device.type == "cpu"
            mean, most = gray_levels(ours, reference)
            assert mean < mean_bound and most < max_bound, (make.__name__, size, mean, most)


def noise(width, height):
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_other_settings_of_the_processor_are_followed(demo, tmp_path):
    settings = json.loads((demo / "processor" / "preprocessor_config.json").read_text())
    settings |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "patch_size": 14}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    patcher = Patcher.from_directory(tmp_path, 4096, 25600)
    requests = [request_of(patcher, photo(84, 56))]
    (ours,), (reference,) = DaliDecoder(patcher).patches(requests), PillowDecoder(patcher).patches(requests)
    assert torch.allclose(ours, reference, atol=2e-6)


@pytest.mark.parametrize(
    ("limit", "value", "batches"), [("MAX_IMAGES", 3, [3, 3, 1]), ("MAX_BATCH_PIXELS", 200 * 64, [2, 2, 1, 2])]
)
def test_a_row_in_many_batches_keeps_its_order(patcher, decoder, monkeypatch, limit, value, batches):
    requests = [request_of(patcher, photo(64 + 32 * (seed % 3), 64, seed)) for seed in range(7)]
    together = decoder.patches(requests)
    monkeypatch.setattr(dali_decoder, limit, value)
    runs = []
    run = decoder._run
    monkeypatch.setattr(decoder, "_run", lambda sources: runs.append(len(sources)) or run(sources))
    assert all(torch.equal(one, other) for one, other in zip(together, decoder.patches(requests), strict=True))
    assert runs == batches
    assert decoder.patches([]) == []


def test_patches_stay_as_they_are_while_the_next_rows_are_decoded(patcher, decoder):
    first = decoder.patches([request_of(patcher, photo(96, 64, seed)) for seed in range(4)])
    copies = [pixels_PC.clone() for pixels_PC in first]
    for seed in range(9, 15):
        decoder.patches([request_of(patcher, photo(96, 64, seed))] * (seed - 7))
    assert all(torch.equal(one, other) for one, other in zip(first, copies, strict=True))


def broken_files():
    png, jpeg = saved(photo(96, 64), "PNG"), saved(photo(96, 64), "JPEG")
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)) + png[33:]
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    return {
        "half a JPEG": jpeg[: len(jpeg) // 2],
        "half a PNG": png[: len(png) // 2],
        "a PNG with a wrong byte": bytes(flipped),
        "nothing": b"",
        "a text": b"Dear colleague, thank you for referring",
        "a bomb": bomb,
    }


@pytest.mark.parametrize("kind", broken_files())
def test_a_bad_image_costs_one_call_and_is_named(patcher, kind):
    decoder = DaliDecoder(patcher, num_threads=1)
    good = [request_of(patcher, photo(96, 64, seed), f"good {seed}") for seed in range(3)]
    bad = ImageRequest(ImageFile(f"{kind}.bin", broken_files()[kind]), AS_STORED, (1, 4, 6))
    before = decoder.patches(good)
    with pytest.raises(DataError, match=rf"{kind}\.bin"):
        decoder.patches([*good[:2], bad, good[2]])
    assert all(torch.equal(one, other) for one, other in zip(before, decoder.patches(good), strict=True))


def test_what_dali_refuses_but_pillow_reads_is_decoded_all_the_same(patcher, decoder, monkeypatch, caplog):
    """No such kind is known among those it gets; so it is given one here, which it cannot read."""
    monkeypatch.setitem(dali_decoder.DALI_MODES, "GIF", ("P",))
    gif = ImageRequest(ImageFile("a.gif", saved(photo(96, 64).quantize(99), "GIF")), AS_STORED, (1, 4, 6))
    good = request_of(patcher, photo(96, 64))
    patches = decoder.patches([good, gif])
    shown = np.asarray(patcher.unpatchify(patches[1], torch.tensor(gif.grid)))
    assert np.array_equal(shown, np.asarray(read_image(gif.file)))
    assert "DALI refuses one of image, a.gif" in caplog.text


def test_a_view_of_a_frame_is_decoded_by_pillow(patcher, decoder, read_by_pillow):
    frames = [photo(96, 64, seed) for seed in (1, 2)]
    file = ImageFile("two.tiff", saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    (pixels_PC,) = decoder.patches([ImageRequest(file, ImageView(frame=1), (1, 4, 6))])
    assert np.array_equal(np.asarray(patcher.unpatchify(pixels_PC, torch.tensor([1, 4, 6]))), np.asarray(frames[1]))
    assert read_by_pillow == ["two.tiff"]


def test_the_graph_of_a_gpu_can_be_laid_out(patcher):
    """DALI checks what is on which device while the graph is described; to build it would take a GPU."""
    assert dali_decoder._graph(patcher, True, batch_size=2, num_threads=1, device_id=0).device_id == 0


def test_a_gpu_in_a_worker_process_is_refused(patcher):
    decoder = DaliDecoder(patcher)
    decoder.device_id, decoder._made_by = 0, -1
    with pytest.raises(ConfigError, match=r"GPU 0, in a worker process"):
        decoder.patches([request_of(patcher, photo(96, 64))])


def test_ranks_of_a_machine_share_its_cores(patcher, monkeypatch):
    monkeypatch.setattr(dali_decoder.os, "sched_getaffinity", lambda process: set(range(13)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert make_decoder("dali", patcher).num_threads == 13
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert make_decoder("dali", patcher).num_threads == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert make_decoder("dali", patcher).num_threads == 1
