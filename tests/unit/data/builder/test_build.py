"""A source becomes a data folder: its shards, its index, and how a build is begun, killed, resumed and refused."""

import hashlib
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import webdataset
from build_folders import asked, contents, index, picture, rejects, stored
from PIL import Image
from transformers import AutoTokenizer

from megatron_medx.cli import main
from megatron_medx.data.builder.build import build_data
from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.chat import measure_text
from megatron_medx.data.demo.tokenizer import DEMO_MAX_PIXELS, DEMO_MIN_PIXELS
from megatron_medx.data.index import Manifest, file_sha256, tokenizer_fingerprint
from megatron_medx.data.patches import Patcher
from megatron_medx.data.samples import parse_sample
from megatron_medx.errors import DataError

FILES = {f"images/{k}.png": picture(k, 20 + k, 31) for k in range(7)}

RECORDS = [asked(f"s{k}", f"images/{k % 7}.png", source="noise", modality=f"M{k % 3}") for k in range(11)]


def test_index_tells_where_everything_lies(demo, write_lines, build, small_tasks):
    twice = asked("twice", "images/1.png", "images/1.png", "images/2.png", patient="p-1", license="CC0-1.0")
    source = write_lines([twice, *RECORDS], FILES)
    out = build(source)
    manifest = Manifest.read(out)
    assert (manifest.num_samples, manifest.num_rejected) == (12, 0)
    assert manifest.tokenizer == tokenizer_fingerprint(demo / "processor") == tokenizer_fingerprint(out / "processor")
    assert manifest.index_sha256 == file_sha256(out / "index.parquet")
    [shard] = manifest.shards
    content = (out / shard.name).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest(), shard.samples) == (shard.bytes, shard.sha256, 12)
    rows = index(out)
    assert [row["id"] for row in rows] == ["twice", *(record["id"] for record in RECORDS)]
    at = 0
    tokenizer = AutoTokenizer.from_pretrained(demo / "processor")
    patcher = Patcher.from_directory(demo / "processor", DEMO_MIN_PIXELS, DEMO_MAX_PIXELS)
    for row in rows:
        piece = content[row["offset"] : row["offset"] + row["size"]]
        assert (row["offset"], row["sha256"]) == (at, hashlib.sha256(piece).digest())
        at += row["size"]
        sample = parse_sample(json.loads(stored(out, row)["json"]))
        assert row["text_tokens"] == measure_text(sample, tokenizer).tokens
        assert row["image_spans"] == [0] * len(sample.images)
        assert row["image_tokens"] == [int(np.prod(patcher.grid(*image.size))) // 4 for image in sample.images]
        assert [image.size for image in sample.images] == list(
            zip(row["image_widths"], row["image_heights"], strict=True)
        )
    assert at + 1024 == len(content)
    first = rows[0]
    assert (first["patient"], first["license"], first["image_widths"]) == ("p-1", "CC0-1.0", [21, 21, 22])
    members = stored(out, first)
    assert set(members) == {"json", "0.png", "1.png"}
    assert (members["0.png"], members["1.png"]) == (FILES["images/1.png"], FILES["images/2.png"])


def test_shards_are_webdatasets(write_lines, build):
    ids = ["plain", "dots.and/slashes", "__meta__", "ü" * 90, "a" * 200]
    out = build(write_lines([asked(sample_id, "images/3.png") for sample_id in ids], FILES))
    shards = [str(out / shard.name) for shard in Manifest.read(out).shards]
    found = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    assert [sample["json"]["id"] for sample in found] == ids
    assert len({sample["__key__"] for sample in found}) == 5 and found[0]["__key__"] == "plain"
    assert all(isinstance(sample["0.png"], Image.Image) for sample in found)
    with tarfile.open(shards[0]) as tar:
        assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {(0, 0, "", 0o644)}
        assert max(len(member.name) for member in tar) <= 100 and not any(member.pax_headers for member in tar)


def test_shards_are_closed_in_time_and_small_ones_joined(write_lines, build, small_tasks):
    source = write_lines(RECORDS, FILES)
    whole, cut = build(source, "whole"), build(source, "cut", shard_size_bytes=16_000)
    sizes = [shard.bytes for shard in Manifest.read(cut).shards]
    assert len(Manifest.read(whole).shards) == 1 and len(sizes) > 2 and max(sizes) <= 16_000
    for one, other in zip(index(whole), index(cut), strict=True):
        assert stored(whole, one) == stored(cut, other) and one["sha256"] == other["sha256"]
    assert [row["id"] for row in index(cut)] == [record["id"] for record in RECORDS]
    for shard in Manifest.read(cut).shards:
        assert file_sha256(cut / shard.name) == shard.sha256


def test_first_of_equal_ids_stays(write_lines, build, small_tasks):
    again = [asked("s1", "images/5.png"), asked("s9", "images/6.png"), asked("new", "images/6.png"), asked("s1")]
    clean = build(write_lines([*RECORDS, again[2]], FILES, "clean"), "clean-out", shard_size_bytes=16_000)
    out = build(write_lines([*RECORDS, *again], FILES), shard_size_bytes=16_000)
    assert [row["id"] for row in index(out)] == [row["id"] for row in index(clean)]
    assert [stored(out, row) for row in index(out)] == [stored(clean, row) for row in index(clean)]
    assert [(line["id"], line["reason"]) for line in rejects(out)] == [
        (name, "duplicate id") for name in ("s1", "s9", "s1")
    ]
    assert Manifest.read(out).num_rejected == 3
    for shard in Manifest.read(out).shards:
        with tarfile.open(out / shard.name) as tar:  # what was left out of the index is not in the tar either
            assert sum(member.name.endswith(".json") for member in tar) == shard.samples


def test_report_and_picture(write_lines, build, capsys):
    source = write_lines([*RECORDS, "{"], FILES)
    out = build(source, report_picture=True)
    report = json.loads((out / "report.json").read_text())
    assert (report["samples"], report["rejected"], report["images"]) == (11, {"bad JSON": 1}, 11)
    assert report["modality"] == {"M0": 4, "M1": 4, "M2": 3} and report["source"] == {"noise": 11}
    assert report["text_tokens"]["sum"] == sum(row["text_tokens"] for row in index(out))
    assert [sum(histogram["counts"]) for histogram in report["histograms"].values()] == [11, 11, 11]
    with Image.open(out / "report.png") as image:
        assert image.width == 1200
    assert sorted(contents(out)) == sorted(
        ["deidentification.json", "index.parquet", "manifest.json", "rejects.jsonl", "report.json", "report.png"]
        + ["shards/00000.tar"]
        + [name for name in contents(out) if name.startswith("processor/")]
    )


KILLED = """
import os, signal, sys
from pathlib import Path
from megatron_medx.data.builder import plan, task
from megatron_medx.data.builder.build import build_data
from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.builder.sources import lines
plan.CHUNK_ITEMS = lines.CHUNK_ITEMS = 3
add, calls = task._SplitWriter.add, []
def add_or_die(self, prepared):
    calls.append(1)
    if len(calls) == 8:  # within the third task
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, prepared)
task._SplitWriter.add = add_or_die
source, out, processor = map(Path, sys.argv[1:])
build_data(source, out, BuildOptions(processor=processor, shard_size_bytes=16_000, report_picture=False))
"""


def test_killed_and_resumed_with_other_workers_equals_uninterrupted(demo, write_lines, build, tmp_path, small_tasks):
    source = write_lines([*RECORDS, asked("s3"), "{"], FILES)
    whole = build(source, "whole", shard_size_bytes=16_000)
    arguments = [source, tmp_path / "out", demo / "processor"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], check=False)
    assert killed.returncode == -9
    done = {str(path.parent.name) for path in (tmp_path / "out").rglob("part.json")}
    assert done == {"00000", "00001"}
    with pytest.raises(DataError, match=r"half a build with max_slices = 64\n.*max_slices = 9"):
        build(source, shard_size_bytes=16_000, max_slices=9)
    out = build(source, shard_size_bytes=16_000, workers=2)
    assert contents(out) == contents(whole)


def test_merge_that_was_killed_is_repeated(write_lines, build, monkeypatch, small_tasks):
    source = write_lines(RECORDS, FILES)
    whole = build(source, "whole", shard_size_bytes=9_000)

    def fail(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("megatron_medx.data.builder.merge.Manifest.write", fail)
        with pytest.raises(KeyboardInterrupt):
            build(source, shard_size_bytes=9_000)
    assert contents(build(source, shard_size_bytes=9_000)) == contents(whole)


def test_finished_folder_is_kept_unless_overwritten(write_lines, build, tmp_path):
    source = write_lines(RECORDS, FILES)
    out = build(source)
    with pytest.raises(DataError, match="is a finished data folder"):
        build(source)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"exists and holds mine\.txt"):
        build(source, overwrite=True)
    assert Manifest.read(out).num_samples == 11  # nothing was touched
    (out / "mine.txt").unlink()
    build(source, overwrite=True, splits={"a": 0.5, "b": 0.5})
    assert {path.name for path in out.iterdir()} == {"a", "b", "splits.json"}
    again = build(source, overwrite=True)
    assert not (again / "a").exists() and Manifest.read(again).num_samples == 11


def test_refuses_what_cannot_be_built(write_lines, demo, tmp_path):
    source = write_lines(RECORDS, FILES)
    processor = demo / "processor"
    with pytest.raises(DataError, match=r"no processor directory .*source/processor"):
        build_data(source, tmp_path / "out")
    with pytest.raises(DataError, match="as source and output"):
        build_data(source, source, BuildOptions(processor=processor))
    with pytest.raises(DataError, match="which the build would write itself"):
        build_data(source, demo, BuildOptions(processor=processor))
    with pytest.raises(DataError, match="max_slices = 0"):
        BuildOptions(max_slices=0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "samples.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no sample"):
        build_data(tmp_path / "empty", tmp_path / "out", BuildOptions(processor=processor))


def test_another_source_is_another_command(write_lines, build, monkeypatch):
    source = write_lines(RECORDS, FILES)
    with monkeypatch.context() as patch:
        patch.setattr("megatron_medx.data.builder.build.finish_build", lambda *arguments: None)
        out = build(source)
    with open(source / "samples.jsonl", "a") as file:
        file.write(json.dumps(asked("more")) + "\n")
    with pytest.raises(DataError, match=r"half a build with source_bytes = \d+\n"):
        build(source)
    assert len(index(build(source, overwrite=True))) == 12 and not (out / ".build").exists()


def test_progress_is_shown_to_who_watches(write_lines, build, monkeypatch, capsys):
    source = write_lines([*RECORDS, "{"], FILES)
    build(source, "quiet")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    build(source)
    assert "building" in (shown := capsys.readouterr().err) and "12/12" in shown and "1 rejected" in shown


def test_command_line(demo, write_lines, tmp_path, capsys):
    source, out = write_lines(RECORDS, FILES), tmp_path / "out"
    command = ["data", "build", str(source), str(out), "--processor", str(demo / "processor")]
    assert main([*command, "--splits", "train=0.5,val=0.5", "--shard-size", "1MB"]) == 0
    printed = capsys.readouterr().out
    assert f"{out}/train: " in printed and "rejected: none" in printed
    assert main(command) == 2
    assert "finished data folder" in capsys.readouterr().err
    assert main([*command, "--splits", "train=much"]) == 2
    assert "a share of much" in capsys.readouterr().err
