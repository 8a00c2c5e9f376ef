"""Every kind of source gives the same samples."""

import json
from io import BytesIO

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
import tifffile
from build_folders import asked, contents, index, picture, rejects, stored
from pydicom.data import get_testdata_file

from megatron_medx.data.builder.sources.conversations import to_schema
from megatron_medx.data.builder.sources.finding import find_source
from megatron_medx.data.samples import ImagePart, TextPart, parse_sample
from megatron_medx.errors import DataError

PICTURES = [picture(k) for k in range(3)]

SAMPLES = [asked(f"s{k}", f"images/{k}.png", source="noise") for k in range(3)]


def samples_in(out):
    """Ids, records without the sizes, and images of a data folder."""
    found = []
    for row in index(out):
        files = stored(out, row)
        record = json.loads(files.pop("json"))
        for part in record["messages"][0]["content"]:
            part.pop("size", None)
        found.append((record, files))
    return found


@pytest.fixture
def expected(write_lines, build):
    """What samples.jsonl gives."""
    files = {f"images/{k}.png": content for k, content in enumerate(PICTURES)}
    return samples_in(build(write_lines(SAMPLES, files, "lines"), "lines-out"))


def columns(images):
    """Rows as a table's columns, the images in a column of their own."""
    messages = []
    for record in SAMPLES:
        asked_for, answer = record["messages"]
        parts = [{"type": "image", "text": None}, {"type": "text", "text": asked_for["content"][1]["text"]}]
        messages.append([{"role": "user", "content": parts}, {"role": "assistant", "content": answer["content"]}])
    sources = ["noise"] * 3
    return {
        "id": [r["id"] for r in SAMPLES],
        "messages": messages,
        "images": images,
        "source": sources,
        "extra": [1] * 3,
    }


def test_parquet_with_images_inside(tmp_path, build, expected):
    table = pa.table(columns([[{"bytes": content, "path": f"{k}.png"}] for k, content in enumerate(PICTURES)]))
    (tmp_path / "source" / "data").mkdir(parents=True)
    pq.write_table(table.slice(0, 2), tmp_path / "source" / "data" / "train-0.parquet", row_group_size=1)
    pq.write_table(table.slice(2), tmp_path / "source" / "data" / "train-1.parquet")
    assert samples_in(build(tmp_path / "source")) == expected


def test_parquet_with_json_text_and_paths(tmp_path, build, expected):
    values = columns([[f"images/{k}.png"] for k in range(3)])
    values["messages"] = [json.dumps(record["messages"]) for record in SAMPLES]
    del values["images"]
    (tmp_path / "images").mkdir()
    for k, content in enumerate(PICTURES):
        (tmp_path / "images" / f"{k}.png").write_bytes(content)
    pq.write_table(pa.table(values), tmp_path / "all.parquet")
    assert samples_in(build(tmp_path / "all.parquet")) == expected


@pytest.mark.parametrize("splits", [False, True])
def test_dataset_saved_to_disk(tmp_path, build, expected, splits):
    folder = tmp_path / "dataset" / ("train" if splits else "")
    folder.mkdir(parents=True)
    table = pa.table(columns([[{"bytes": content, "path": None}] for content in PICTURES]))
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file:
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")
    if splits:
        (tmp_path / "dataset" / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    assert samples_in(build(tmp_path / "dataset")) == expected


def test_arrow_chunks_are_read_from_the_middle(tmp_path, small_tasks, monkeypatch):
    monkeypatch.setattr("megatron_medx.data.builder.sources.tables.CHUNK_ITEMS", 3)
    table = pa.table({"id": [f"t{k}" for k in range(8)], "text": [f"text {k}" for k in range(8)]})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    source = find_source(tmp_path / "a.arrow", b"key")
    chunks = list(source.chunks(tmp_path))
    assert [(chunk["row"], chunk["count"]) for chunk in chunks] == [(0, 4), (4, 4)]
    assert [item.record for item in source.items(chunks[1], tmp_path)] == [
        {"id": f"t{k}", "content": f"text {k}"} for k in range(4, 8)
    ]


def test_values_that_json_lacks_are_rejected(tmp_path, build):
    metadata = [{"a": 1.5}, {"a": float("nan")}]
    pq.write_table(pa.table({"text": ["a", "b"], "metadata": metadata}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["c"], "metadata": [{"a": b"bytes"}]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"content": ["plain", '[{"type": "text"', None]}), tmp_path / "c.parquet")
    out = build(tmp_path)
    assert [row["id"] for row in index(out)] == ["a-1", "c-1"]
    assert [(line["id"], line["reason"]) for line in rejects(out)] == [
        ("a-2", "breaks the schema"),
        ("b-1", "breaks the schema"),
        ("c.parquet row 2", "bad JSON"),
        ("c-3", "breaks the schema"),
    ]


def test_llava_list(tmp_path, build, expected, small_tasks):
    (tmp_path / "images").mkdir()
    entries = []
    for k, content in enumerate(PICTURES):
        (tmp_path / "images" / f"{k}.png").write_bytes(content)
        turns = [{"from": "human", "value": f"<image>\nWhat is s{k}?"}, {"from": "gpt", "value": "Noise."}]
        entries.append({"id": f"s{k}", "image": f"images/{k}.png", "conversations": turns, "source": "noise"})
    (tmp_path / "llava.json").write_text(json.dumps(entries * 2))
    out = build(tmp_path / "llava.json")
    assert samples_in(out) == expected
    assert [line["reason"] for line in rejects(out)] == ["duplicate id"] * 3


def test_llava_turns():
    turns = [{"from": "human", "value": "<image>\nA <image> b"}, {"from": "gpt", "value": "c"}]
    sample = parse_sample(to_schema({"image": ["1.png", "2.png"], "conversations": turns}, "file-4"))
    assert sample.sample_id == "file-4"
    assert sample.messages[0].parts == (ImagePart("1.png"), TextPart("A "), ImagePart("2.png"), TextPart(" b"))
    front = to_schema({"id": 3, "image": "1.png", "conversations": [{"from": "human", "value": "A"}, turns[1]]}, "")
    assert parse_sample(front).images == [ImagePart("1.png")] and front["id"] == "3"
    for entry, message in (
        ({"image": "1.png", "conversations": turns}, "2 times <image>, 1 images"),
        ({"conversations": [{"from": "doctor", "value": "a"}]}, "from 'doctor'"),
        ({"conversations": "a"}, "another form"),
        ({"conversations": [{"from": "human"}]}, "without a text"),
    ):
        with pytest.raises(ValueError, match=message):
            to_schema(entry, "x")


def ct(number, series="1.2.3", **fields):
    header = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    header.SeriesInstanceUID, header.InstanceNumber = series, number
    header.ImagePositionPatient = [0, 0, 2.5 * number]
    for name, value in fields.items():
        setattr(header, name, value)
    file = BytesIO()
    header.save_as(file)
    return file.getvalue()


def test_dicom_folder(tmp_path, build):
    source = tmp_path / "pacs"
    files = {f"study/a/{name}": ct(number) for number, name in enumerate(["zz", "k.dcm", "b"])}
    files |= {"study/a/report.txt": b"No nodule.\n", "study/notes.doc": b"not DICOM"}
    files |= {"study/x-ray": ct(1, "1.2.4", Modality="CR"), "study/x-ray.txt": b"Clear.", "study/report.txt": b"whose?"}
    files |= {"study/b/cut.dcm": ct(2, "1.2.5")[:20_000]}
    for name, content in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    out = build(source, max_slices=2)
    volume, xray = (json.loads(stored(out, row)["json"]) for row in index(out))
    description, first, last, report = volume["content"]
    assert description["text"].startswith("CT") and report == {"type": "text", "text": "\nNo nodule."}
    assert [part["position"] for part in (first, last)] == ["0.0 mm", "5.0 mm"]
    assert [part.get("text") for part in xray["content"]][-1] == "\nClear." and len(xray["content"]) == 3
    assert volume["patient"] == xray["patient"] != "" and volume["id"] != xray["id"]
    assert "1.2.3" not in volume["id"] and volume["modality"] == "CT"
    assert [(line["reason"], line["file"]) for line in rejects(out)] == [("truncated image", "study/b/cut.dcm")]
    summary = json.loads((out / "report.json").read_text())
    assert (summary["volumes_and_slides"], summary["slices_and_tiles_left_out"]) == (1, 1)
    assert (summary["gaps_in_volumes"], summary["localizers_left_out"]) == (0, 0)


def test_missing_slices_and_scouts_of_a_series_are_counted(tmp_path, build):
    source = tmp_path / "pacs"
    source.mkdir()
    for number in (0, 1, 2, 3, 7):
        (source / f"{number}.dcm").write_bytes(ct(number))
    scout = ct(20, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (source / "scout.dcm").write_bytes(scout)
    summary = json.loads((build(source) / "report.json").read_text())
    assert (summary["images"], summary["gaps_in_volumes"], summary["localizers_left_out"]) == (5, 1, 1)


def test_a_slide_becomes_an_overview_and_tiles(tmp_path, build, write_lines):
    """A pyramid with tissue on glass, as openslide reads it."""
    pixels = np.full((2048, 3072, 3), 245, np.uint8)
    pixels[300:1800, 400:2700] = np.random.default_rng(0).integers((120, 20, 90), (220, 120, 190), (1500, 2300, 3))
    source = write_lines([{"id": "s", "content": [{"type": "slide", "slide": "a.tif"}]}])
    with tifffile.TiffWriter(source / "a.tif") as file:
        scale = {"tile": (256, 256), "photometric": "rgb", "resolutionunit": "CENTIMETER"}
        file.write(pixels, resolution=(10_000, 10_000), **scale)
        file.write(pixels[::4, ::4], resolution=(2_500, 2_500), subfiletype=1, **scale)
    out = build(source, max_slices=4)
    [row] = index(out)
    record = json.loads(stored(out, row)["json"])
    positions = [part.get("position", "") for part in record["content"]]
    assert positions[0] == "" and 2 <= len(positions) <= 4 and all("mm" in place for place in positions[1:])
    assert not rejects(out) and sum(name.endswith(".jpg") for name in stored(out, row)) == len(positions)


def test_frames_of_a_dicom_file_have_a_number(tmp_path, build):
    (tmp_path / "pacs").mkdir()
    header = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    header.Modality, header.NumberOfFrames, header.PixelData = "XA", 3, header.PixelData * 3
    header.save_as(tmp_path / "pacs" / "cine")
    [row] = index(build(tmp_path / "pacs"))
    assert row["image_widths"] == [128] * 3 and row["image_spans"][0] == 0 < row["image_spans"][1]
    assert len(row["members"]) == 2


def test_volume_of_a_line(write_lines, build):
    affine = np.diag([-1.0, -1.0, 4.0, 1.0])
    image = nibabel.Nifti1Image(np.random.default_rng(0).integers(-900, 900, (9, 8, 7)).astype(np.int16), affine)
    image.header["descrip"] = b"Doe Jane"
    question = asked("v")
    question["messages"][0]["content"].insert(0, {"type": "volume", "volume": "v.nii.gz", "window": "lung"})
    files = {"v.nii.gz": nibabel.Nifti1Image.to_bytes(image)}
    folder = {"id": "f", "content": [{"type": "volume", "volume": "ct"}]}
    files |= {f"ct/{k}": ct(k) for k in range(3)}
    out = build(write_lines([question, folder], files), max_slices=3)
    nifti, dicom = index(out)
    assert nifti["image_widths"] == [9, 9, 9] and nifti["image_spans"][0] == 0 < nifti["image_spans"][1]
    record = json.loads(stored(out, nifti)["json"])
    slices = [part for part in record["messages"][0]["content"] if part["type"] == "image"]
    assert [part["position"] for part in slices] == ["0.0 mm", "12.0 mm", "24.0 mm"]
    assert all(part["window"] == ["lung"] and part["size"] == [9, 8] for part in slices)
    assert set(stored(out, nifti)) == {"json", "0.nii", "1.nii", "2.nii"} and len(dicom["members"]) == 4
    assert json.loads((out / "deidentification.json").read_text())["dropped"]["descrip"] == 1
    assert not any(b"Doe Jane" in content for content in contents(out).values())


def test_refuses_what_is_no_source(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")
    (tmp_path / "a.parquet").write_text("no parquet")
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("[")
    for name, message in (
        ("gone", "no .*gone"),
        ("folder", "with nothing that is known"),
        ("folder/a.txt", r"a file named \.txt"),
        ("a.parquet", "cannot be read"),
        ("a.json", "holds a JSON dict"),
        ("b.json", "is not JSON"),
    ):
        with pytest.raises(DataError, match=message):
            list(find_source(tmp_path / name, b"key").chunks(tmp_path))
