"""Splits by patient: where one falls is a function of the key alone, so nobody is in two."""

import random

import pytest
from build_folders import asked, index, rejects

from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.index import Manifest
from megatron_medx.errors import DataError

SPLITS = {"train": 0.7, "val": 0.2, "test": 0.1}


def test_a_patient_is_in_one_split_whatever_the_order(write_lines, build, small_tasks):
    records = [asked(f"s{k}", patient=f"p{k % 13}") for k in range(60)] + [asked(f"free{k}") for k in range(20)]
    records += [{"id": f"bad{k}", "content": "", "patient": f"p{k}"} for k in range(13)]
    shuffled = random.Random(3).sample(records, len(records))
    found = []
    for name, given in (("a", records), ("b", shuffled), ("c", records[:50])):
        out = build(write_lines(given, {}, f"source-{name}"), name, splits=SPLITS)
        splits = {split: index(out / split) for split in SPLITS}
        patients = {split: {row["patient"] for row in rows} - {""} for split, rows in splits.items()}
        patients = {
            split: keys | {f"p{line['id'][3:]}" for line in rejects(out / split)} for split, keys in patients.items()
        }
        assert sum(map(len, patients.values())) == len(set.union(*patients.values())) == 13
        assert sum(map(len, splits.values())) == sum(not record["id"].startswith("bad") for record in given)
        found.append({row["id"]: split for split, rows in splits.items() for row in rows})
        assert all(Manifest.read(out / split).num_samples == len(rows) for split, rows in splits.items())
    assert found[0] == found[1] and found[2].items() <= found[0].items()
    assert len(set(found[0].values())) == 3


def test_shares_are_kept():
    """Of 20,000 keys the shares lie within 3.4 standard errors (0.0032 at 0.7); the keys are fixed."""
    options = BuildOptions(splits=SPLITS)
    falls = [options.split_of(f"patient {k}") for k in range(20_000)]
    assert all(abs(falls.count(name) / 20_000 - share) < 0.011 for name, share in SPLITS.items())


def test_last_split_takes_what_rounding_leaves():
    options = BuildOptions(splits=dict.fromkeys("abcdefghij", 0.1))
    assert {options.split_of(f"{k}") for k in range(300)} == set("abcdefghij")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": 0.5, "val": 0.4}, "train=0.5, val=0.4, which sum to 0.9"),
        ({"train": 1.5, "val": -0.5}, "val=-0.5, which sum to 1"),
        ({"../train": 1.0}, "split name '../train'"),
        ({"": 1.0}, "split name ''"),
    ],
)
def test_refuses_splits(splits, message):
    with pytest.raises(DataError, match=message):
        BuildOptions(splits=splits)


def test_key_of_pseudonyms(tmp_path):
    assert BuildOptions().patient_key == BuildOptions().patient_key
    with pytest.raises(DataError, match="no file"):
        _ = BuildOptions(patient_key_file=tmp_path / "key").patient_key
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(DataError, match="5 bytes"):
        _ = BuildOptions(patient_key_file=tmp_path / "key").patient_key
    (tmp_path / "key").write_bytes(bytes(range(40)))
    assert BuildOptions(patient_key_file=tmp_path / "key").patient_key != BuildOptions().patient_key
