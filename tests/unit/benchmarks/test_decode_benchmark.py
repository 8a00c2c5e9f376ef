"""The benchmark of decoding: what it times, its ratios by hand, its last line, its exit code."""

import json
from io import BytesIO

import pytest
from PIL import Image

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is optional")

from benchmarks import decode


@pytest.mark.parametrize(("target", "code"), [(0.0, 0), (1e9, 1)])
def test_a_missed_target_is_exit_code_1(capsys, monkeypatch, target, code):
    monkeypatch.setattr(decode, "TARGETS", dict.fromkeys(decode.TARGETS, target))
    assert decode.main(["--images", "6", "--rounds", "1"]) == code
    printed = capsys.readouterr().out
    summary = json.loads(printed.splitlines()[-1])
    assert summary["reached"] is (code == 0) and ("MISSED" in printed) is (code == 1)
    assert set(summary["median_ms"]) == set(decode.WAYS)
    assert all(0.1 < milliseconds < 1000 for milliseconds in summary["median_ms"].values())


def test_ratios_are_medians_of_rounds_side_by_side():
    times = {"ours": [1.0, 2.0, 4.0], "stock": [3.0, 2.0, 6.0], "dali": [2.0, 1.0, 4.0]}
    times |= {"jpeg_pillow": [5.0, 5.0, 5.0], "jpeg_dali": [4.0, 2.0, 5.0]}
    times |= {"png_pillow": [1.0, 1.0, 1.0], "png_dali": [2.0, 2.0, 2.0]}
    assert decode.ratios(times) == {
        "stock_over_ours": 1.5,
        "jpeg_pillow_over_dali": 1.25,
        "png_pillow_over_dali": 0.5,
        "ours_over_dali": 1.0,
    }


def test_all_ways_give_the_same_images():
    files = decode.make_corpus(6)
    assert files[:2] == decode.make_corpus(2)
    kinds = [Image.open(BytesIO(content)).format for content in files]
    assert kinds == ["JPEG"] * 5 + ["PNG"]
    ways = decode.ways_of(files)
    assert {name: count for name, (_, count) in ways.items()} == {
        **dict.fromkeys(("ours", "stock", "dali"), 6),
        **dict.fromkeys(("jpeg_pillow", "jpeg_dali"), 5),
        **dict.fromkeys(("png_pillow", "png_dali"), 1),
    }
    ours, stock, dali = (ways[name][0]() for name in ("ours", "stock", "dali"))
    for one, other, third in zip(ours, stock, dali, strict=True):
        assert (one == other["pixel_values"]).all() and float((one - third).abs().mean()) < 2 / 255
    (decoded,) = ways["png_dali"][0]()
    assert decoded.at(0).shape[:2] == Image.open(BytesIO(files[5])).size[::-1]
