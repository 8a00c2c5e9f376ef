"""Tiny pictures and records, and what a built folder holds."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image


def picture(seed: int, width: int = 37, height: int = 23) -> bytes:
    """A PNG of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def asked(sample_id: str, *images: str, **fields) -> dict:
    """A question about images."""
    parts = [{"type": "image", "image": image} for image in images] + [
        {"type": "text", "text": f"What is {sample_id}?"}
    ]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Noise."}]}
    return {"id": sample_id, "messages": [{"role": "user", "content": parts}, answer], **fields}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below, by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def index(folder: Path) -> list[dict]:
    """Rows of a data folder's index."""
    return pq.read_table(folder / "index.parquet").to_pylist()


def rejects(folder: Path) -> list[dict]:
    """Lines of a data folder's rejects."""
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


def stored(folder: Path, row: dict) -> dict[str, bytes]:
    """Members of a sample by what follows the key, read by the offsets of the index."""
    manifest = json.loads((folder / "manifest.json").read_text())
    shard = (folder / manifest["shards"][row["shard"]]["name"]).read_bytes()
    return {
        member["name"].partition(".")[2]: shard[member["offset"] : member["offset"] + member["size"]]
        for member in row["members"]
    }
