"""Tiny sources, and builds of them with the demo's processor."""

import json
from pathlib import Path

import pytest

from megatron_medx.data.builder import plan
from megatron_medx.data.builder.build import build_data
from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.builder.sources import lines


@pytest.fixture
def write_lines(tmp_path):
    """A function that writes records, and files by their names, as a source."""

    def write(records, files: dict[str, bytes] | None = None, name: str = "source") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file, content in (files or {}).items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        text = [record if isinstance(record, str) else json.dumps(record) for record in records]
        (folder / "samples.jsonl").write_text("\n".join(text) + "\n")
        return folder

    return write


@pytest.fixture
def build(demo, tmp_path):
    """A function that builds a source with the demo's processor and returns the data folder."""

    def make(source: Path, name: str = "out", **options) -> Path:
        options = {"processor": demo / "processor", "report_picture": False} | options
        build_data(source, tmp_path / name, BuildOptions(**options))
        return tmp_path / name

    return make


@pytest.fixture
def small_tasks(monkeypatch):
    """Three samples a task, so that a tiny source has several."""
    monkeypatch.setattr(lines, "CHUNK_ITEMS", 3)
    monkeypatch.setattr(plan, "CHUNK_ITEMS", 3)
