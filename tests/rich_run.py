"""A run folder in which there is something of everything, written by hand: what pages and screens are tried on."""

import datetime
import json
import math
from pathlib import Path

from PIL import Image

from megatron_medx.config.files import write_run_yaml
from megatron_medx.recipes import get_recipe

STARTED = datetime.datetime(2026, 11, 23, 6, 0, tzinfo=datetime.UTC)

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)> $$x^2$$ <b>bold</b> \\(y\\)"
"""Text as it may stand in anybody's data."""


def write_rich_run(folder: Path, num_steps: int = 60, num_ranks: int = 4, shift: float = 0.0, seed: int = 1234) -> Path:
    """Write the run folder, with its data folder inside, and return it.

    Args:
        folder: is made.
        num_steps: steps done, of 80.
        num_ranks: of ranks.jsonl.
        shift: added to all losses.
        seed: of the configuration.
    """
    config = get_recipe("demo")
    config.run.folder, config.run.seed = str(folder), seed
    config.training.steps, config.parallel.world_size = 80, num_ranks
    config.data.path = str(folder / "corpus")
    config.data.validation_sets = {"chest": str(folder / "gone")}
    provenance = {"command": "medx train demo", "commit": "abc123", "versions": {"torch": "2.15.0"}, "date": "today"}
    folder.mkdir(parents=True)
    write_run_yaml(config, folder / "run.yaml", provenance)
    _write_lines(folder / "metrics.jsonl", (_step(step, shift) for step in range(1, num_steps + 1)))
    _write_lines(folder / "ranks.jsonl", (_ranks(step, num_ranks) for step in range(5, num_steps + 1, 5)))
    _write_lines(folder / "validation.jsonl", _validations(num_steps, shift))
    _write_lines(folder / "generations.jsonl", _generations(num_steps))
    _write_lines(folder / "events.jsonl", _events(num_steps))
    bad = {"step": 33, "what": "spike", "loss": 9.5, "applied": False, "sample_ids": ["a", "b", "c", HOSTILE]}
    _write_lines(folder / "bad_steps.jsonl", [bad])
    _write_lines(folder / "rejects.jsonl", [{"id": HOSTILE, "file": "x.png", "reason": "cannot be read"}])
    _write_corpus(folder / "corpus")
    (folder / "data").mkdir()
    counts = {str(folder / "corpus"): {"num_samples": 64, "num_tokens": 9_000, "num_thinned": 1, "num_rejected": 2}}
    (folder / "data" / "plan.json").write_text(json.dumps({"counts": counts, "pieces": {}}))
    (folder / "profile").mkdir()
    (folder / "profile" / "summary.txt").write_text("attention 40 %\n")
    Image.new("RGB", (64, 32), "teal").save(folder / "preview.png")
    return folder


def _step(step: int, shift: float) -> dict:
    wave = 0.1 * math.sin(step)
    return {
        "step": step,
        "loss": None if step == 20 else 2 + 6 / step**0.5 + wave + shift,
        "grad_norm": 1.5 + wave,
        **{f"grad_norm_{part}": value + wave for part, value in (("vision", 0.8), ("merger", 0.4), ("language", 1.2))},
        "lr": 1e-3 / step,
        "lr_vision": None,
        "lr_merger": 1e-3 / step,
        "lr_language": 5e-4 / step,
        "tokens": 1000,
        "images": 12,
        "source_tokens": {"corpus": 1000},
        "samples_crc": 1,
        "step_time_s": 0.5 + 0.05 * math.cos(step),
        "data_wait_s": 0.01,
        "model_tflops_per_s": 0.02,
        "mfu": None,
        "memory_gb": 1.5,
    }


def _ranks(step: int, num_ranks: int) -> dict:
    busy_s = [0.4 + 0.2 * (rank == 2) for rank in range(num_ranks)]
    return {
        "step": step,
        "step_time_s": [0.5] * num_ranks,
        "busy_s": busy_s,
        "data_wait_s": [0.01] * num_ranks,
        "memory_gb": [1.5] * num_ranks,
    }


def _validations(num_steps: int, shift: float):
    for step in range(0, num_steps + 1, 10):
        for number, name in enumerate(("validation", "chest")):
            loss = 2.2 + 6 / (step + 1) ** 0.5 + 0.3 * number + shift
            yield {
                "step": step,
                "set": name,
                "loss": loss,
                "perplexity": math.exp(loss),
                "bits_per_byte": loss / 3,
                "accuracy": 0.25 + step / 200 if number else None,
                "num_questions": 40 * number,
                "rows": 8,
                "tokens": 900,
                "trained_tokens": 400,
                "samples_crc": 7,
                "duration_s": 1.5,
                "by_modality": {"CR": {"loss": loss, "tokens": 300}, HOSTILE: {"loss": loss + 0.1, "tokens": 100}},
                "by_source": {"textbook": {"loss": loss, "tokens": 300}, "$$x^2$$": {"loss": loss, "tokens": 100}},
            }


def _generations(num_steps: int):
    for step in range(0, num_steps + 1, 10):
        for sample in ("sample-1", "sample-2"):
            answer = HOSTILE if sample == "sample-2" else f"answer of step {step}"
            line = {"step": step, "set": "validation", "sample_id": sample, "question": f"What is {sample}? {HOSTILE}"}
            yield line | {"answer": answer, "expected": "a normal chest"}


def _events(num_steps: int):
    def event(name: str, after_s: float, **facts) -> dict:
        time = STARTED + datetime.timedelta(seconds=after_s)
        return {"time": time.isoformat(timespec="milliseconds"), "event": name, **facts}

    yield event("job_started", 0, job=7, restart=0, tasks=4, hosts=["node1", "node2"])
    yield event("launched", 10, ranks=4, hosts=["node1", "node2"], resumed_from=None)
    yield event("first_step", 15, step=1, start_s=5.0)
    yield event("saved", 25, step=20, save_s=1.0, bytes=1_000_000)
    yield event("bad_step", 30, step=33, what="spike", loss=9.5, applied=False)
    yield event("failed", 32, step=34, code=1, rank=2, why=HOSTILE)
    yield event("launched", 40, ranks=4, hosts=["node1", "node2"], resumed_from=20)
    yield event("first_step", 45, step=21, start_s=5.0)
    yield event("saved", 65, step=num_steps, save_s=1.2, bytes=1_000_000)
    yield event("interrupted", 66, step=num_steps, signal="SIGUSR1")


def _write_corpus(folder: Path) -> None:
    folder.mkdir()
    manifest = {"format": 1, "num_samples": 64, "num_rejected": 3, "tokenizer": "x", "index_sha256": "x", "shards": []}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    report = {
        "samples": 64,
        "rejected": {"image cannot be read": 3},
        "text_tokens": {"sum": 5_000, "longest": 200},
        "images": 70,
        "image_tokens": 4_000,
        "modality": {"CR": 40, "CT": 24},
        "source": {"textbook": 64},
        "license": {"CC-BY-4.0": 60, "not stated": 4},
        "language": {"en": 64},
    }
    (folder / "report.json").write_text(json.dumps(report))


def _write_lines(path: Path, lines) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
