"""Spoiled samples: each is named with its class of reason, and changes nothing for the others."""

import json
import struct
import zlib
from collections import Counter
from io import BytesIO

import pydicom
import pytest
from build_folders import asked, index, picture, rejects, stored
from PIL import Image
from pydicom.data import get_testdata_file

from megatron_medx.data.builder.rejects import REASON_OF_WORDS, bad_image
from megatron_medx.data.index import Manifest
from megatron_medx.errors import DataError

GOOD = {"images/good.png": picture(1), "images/other.png": picture(2)}


def bomb() -> bytes:
    """A PNG whose header promises 60,000 x 60,000 px."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def dicom(**changes) -> bytes:
    header = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    for name, value in changes.items():
        if value is None:
            del header[name]
        else:
            setattr(header, name, value)
    file = BytesIO()
    header.save_as(file)
    return file.getvalue()


def thin() -> bytes:
    file = BytesIO()
    Image.new("RGB", (402, 2)).save(file, "PNG")
    return file.getvalue()


SPOILED_FILES = {
    "images/cut.png": picture(3)[:-700],
    "images/cut.dcm": dicom()[:20_000],
    "images/zero.png": b"",
    "images/text.png": b"<html>not found</html>",
    "images/bomb.png": bomb(),
    "images/burned.dcm": dicom(BurnedInAnnotation="YES"),
    "images/empty.dcm": dicom(PixelData=None),
    "images/thin.png": thin(),
    "volumes/a/1.dcm": dicom(ImagePositionPatient=None),
    "volumes/none.nii": b"\0" * 400,
}

SPOILED = [
    (asked("cut", "images/cut.png"), "truncated image"),
    (asked("cut-dicom", "images/cut.dcm"), "truncated image"),
    (asked("zero", "images/zero.png"), "empty file"),
    (asked("text", "images/text.png"), "not an image"),
    (asked("bomb", "images/bomb.png"), "too many pixels"),
    (asked("gone", "images/gone.png"), "missing file"),
    (asked("burned", "images/burned.dcm"), "burned-in text"),
    (asked("no-pixels", "images/empty.dcm"), "truncated image"),
    (asked("thin", "images/thin.png"), "too long and thin"),
    ({"id": "folder", "content": [{"type": "image", "image": "images"}]}, "unreadable file"),
    (
        {"id": "hu", "content": [{"type": "image", "image": "images/good.png", "window": "lung"}]},
        "window of what is not HU",
    ),
    ({"id": "frame", "content": [{"type": "image", "image": "images/burned.dcm", "frame": 3}]}, "burned-in text"),
    ({"id": "frames", "content": [{"type": "image", "image": "images/good.png", "frame": 3}]}, "missing frame"),
    ({"id": "placeless", "content": [{"type": "volume", "volume": "volumes/a"}]}, "volume"),
    ({"id": "no-nifti", "content": [{"type": "volume", "volume": "volumes/none.nii"}]}, "volume"),
    ({"id": "no-slide", "content": [{"type": "slide", "slide": "images/good.png"}]}, "slide"),
    ('{"id": "half", "content": "a', "bad JSON"),
    ({"id": "empty", "content": ""}, "breaks the schema"),
    ({"id": 7, "content": "a"}, "breaks the schema"),
    ('{"id": "\\ud800", "content": "a"}', "breaks the schema"),
    ({"id": "pad", "content": "here is <|image_pad|>"}, "cannot be rendered"),
]

KEPT = [
    asked("first", "images/good.png"),
    {"id": "long", "content": "word " * 40_000},
    asked("last", "images/other.png", "images/good.png"),
]


def test_spoiled_samples_are_named_and_the_others_stay_as_they_are(write_lines, build, small_tasks):
    records = [
        KEPT[0],
        *(record for record, _ in SPOILED[:9]),
        KEPT[1],
        *(record for record, _ in SPOILED[9:]),
        KEPT[2],
    ]
    out = build(write_lines(records, GOOD | SPOILED_FILES))
    clean = build(write_lines(KEPT, GOOD, "clean"), "clean-out")
    named = rejects(out)
    expected = [
        (json.loads(record)["id"] if isinstance(record, str) and record.endswith("}") else record["id"], reason)
        for record, reason in SPOILED
        if reason != "bad JSON" and not (isinstance(record, dict) and record["id"] == 7)
    ]
    known = [(line["id"].encode().decode("unicode_escape") if "\\u" in line["id"] else line["id"], line["reason"])
             for line in named if "line " not in line["id"]]  # fmt: skip
    assert known == expected
    assert [(line["id"], line["reason"]) for line in named if "line " in line["id"]] == [
        ("samples.jsonl line 19", "bad JSON"),
        ("samples.jsonl line 21", "breaks the schema"),
    ]
    files = {line["id"]: line["file"] for line in named}
    assert (files["bomb"], files["gone"], files["empty"]) == ("images/bomb.png", "images/gone.png", "")
    assert all(line["found"] for line in named)
    report = json.loads((out / "report.json").read_text())
    assert report["rejected"] == dict(sorted(Counter(reason for _, reason in SPOILED).items()))
    assert (Manifest.read(out).num_samples, Manifest.read(out).num_rejected) == (3, len(SPOILED))
    assert index(out) == index(clean) and index(out)[1]["text_tokens"] > 40_000
    assert [stored(out, row) for row in index(out)] == [stored(clean, row) for row in index(clean)]
    assert (out / "shards/00000.tar").read_bytes() == (clean / "shards/00000.tar").read_bytes()


def test_burned_in_text_may_be_allowed(write_lines, build):
    source = write_lines([asked("burned", "images/burned.dcm")], SPOILED_FILES)
    assert len(index(build(source, allow_burned_in=True))) == 1


def test_names_of_patients_are_dropped_and_counted(write_lines, build):
    content = dicom(PatientName="Doe^Jane", PatientID="patient-0815")
    source = write_lines([asked("a", "ct.dcm"), asked("b", "ct.dcm", patient="own")], {"ct.dcm": content})
    out = build(source)
    one, other = index(out)
    assert (len(one["patient"]), other["patient"]) == (32, "own")
    [shard] = (out / "shards").iterdir()
    for path in (path for path in out.rglob("*") if path.is_file()):
        assert b"Doe^Jane" not in path.read_bytes() and b"patient-0815" not in path.read_bytes(), path
    stripped = json.loads((out / "deidentification.json").read_text())
    assert stripped["files"] == 2 and stripped["dropped"]["PatientName"] == 2
    assert set(stored(out, one)) == {"json", "0.dcm"} and shard.stat().st_size > 2 * 30_000


@pytest.mark.parametrize("words", REASON_OF_WORDS)
def test_words_of_the_readers_give_the_reason(words):
    assert bad_image(DataError(f"a.png{words}", "", ""), "a.png").reason == REASON_OF_WORDS[words]
