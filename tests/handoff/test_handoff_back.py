"""And back: what TRL saved converts to Megatron, trains on, and is exported again as the hub's own directories look.

transformers 5 saves otherwise than the hub: experts transposed, `rope_parameters` and `num_local_experts` in
config.json, one nested processor_config.json, no vocab.json, special tokens under a name that 4.57 cannot read.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from second_environment import run_in_version_4
from transformers_run import picture
from trl.chat_template_utils import add_response_schema
from trl_runs import train, zoomed

from megatron_medx import cli
from megatron_medx.checkpoint.hugging_face.hf_directory import HfDirectory
from megatron_medx.checkpoint.running.logits import Sample, stock_arguments
from megatron_medx.config.files import write_run_yaml
from megatron_medx.config.processor import REQUIRED_FILES
from megatron_medx.config.run import RunConfig
from megatron_medx.data.builder.build import build_data
from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.rows import build_row_dataset
from megatron_medx.recipes import get_recipe
from megatron_medx.training.step_lines import read_metrics

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning"),  # TRL's own use of transformers
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
]

KINDS = ("dense", "moe", "tied")

TEXT = "A computed tomography of the chest: 12 mm.\n<|im_start|>user\n<tool_call></tool_call><|image_pad|> naïve É 東"

LOSS_TOLERANCE = 1e-6
"""Of a row's mean loss in nats, in fp32; the worst seen is 3.9e-7 (dense) and 4.4e-7 (experts)."""


@pytest.fixture(scope="session")
def saved(export_dir, moe_export_dir, tied_export_dir) -> dict[str, Path]:
    """What TRL saved: after GRPO with the zoom tool, after GRPO of experts, after supervised steps on tied weights."""
    return {
        "dense": zoomed(export_dir).saved,
        "moe": train("grpo_trl", moe_export_dir, "--steps", "2").saved,
        "tied": train("sft_trl", tied_export_dir, "--steps", "2").saved,
    }


@pytest.fixture(scope="session")
def back(saved, tmp_path_factory) -> dict[str, Path]:
    """Their Megatron checkpoints, by `medx convert to-megatron`."""
    folder = tmp_path_factory.mktemp("back")
    for kind in KINDS:
        assert cli.main(["convert", "to-megatron", str(saved[kind]), str(folder / kind)]) == 0
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="session")
def again(back, tmp_path_factory) -> dict[str, Path]:
    """The exports of these, by `medx convert to-hf`."""
    folder = tmp_path_factory.mktemp("again")
    for kind in KINDS:
        assert cli.main(["convert", "to-hf", str(back[kind]), str(folder / kind)]) == 0
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="session")
def data(processor_dir, tmp_path_factory) -> Path:
    """A data folder of one question about one picture."""
    folder = tmp_path_factory.mktemp("data")
    source = folder / "source"
    source.mkdir()
    (source / "processor").symlink_to(processor_dir)
    picture().save(source / "gradient.png")
    parts = [{"type": "image", "image": "gradient.png"}, {"type": "text", "text": "Is there a pleural effusion?"}]
    answer = [{"type": "text", "text": "No, the angles are sharp."}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    (source / "samples.jsonl").write_text(json.dumps({"id": "one", "messages": turns}) + "\n")
    build_data(source, folder / "built", BuildOptions(report_picture=False))
    return folder / "built"


@pytest.mark.parametrize("kind", KINDS)
def test_what_trl_saved_is_not_in_the_hubs_style(kind, saved):
    """Otherwise the tests below prove nothing."""
    folder = saved[kind]
    assert (folder / "processor_config.json").is_file()
    assert not any((folder / name).exists() for name in ("preprocessor_config.json", "vocab.json", "merges.txt"))
    text = json.loads((folder / "config.json").read_text())["text_config"]
    assert "rope_parameters" in text and "rope_theta" not in text
    directory = HfDirectory(folder)
    if kind == "moe":
        assert text["num_local_experts"] == 6
        (key,) = (key for key in directory.specs if key.endswith("layers.0.mlp.experts.down_proj"))
        hidden, width = directory.model.hidden_size, directory.model.expert_ffn_hidden_size
        assert transformers_shape(folder, key) == [6, hidden, width]
        assert list(directory.specs[key].shape) == [6, width, hidden]


def transformers_shape(folder: Path, key: str) -> list[int]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return file.get_slice(key).get_shape()


@pytest.mark.parametrize("kind", KINDS)
def test_its_tensors_are_bit_equal_in_megatron_and_in_the_next_export(kind, saved, back, again, capsys):
    for other in (back[kind], again[kind]):
        capsys.readouterr()
        assert cli.main(["convert", "verify", str(saved[kind]), str(other), "--tensors-only"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["bit_equal"] is True and found["num_tensors"] > 100


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_export_has_the_hubs_files(kind, saved, again, processor_dir):
    folder = again[kind]
    assert all((folder / name).is_file() for name in REQUIRED_FILES)
    assert not (folder / "processor_config.json").exists()
    for name in ("chat_template.jinja", "vocab.json", "merges.txt"):
        assert (folder / name).read_bytes() == (processor_dir / name).read_bytes(), name
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        before, after = (json.loads((place / name).read_text()) for place in (processor_dir, folder))
        assert after | before == after, name  # transformers adds defaults
    before, after = (json.loads((place / "tokenizer_config.json").read_text()) for place in (processor_dir, folder))
    for name in ("added_tokens_decoder", "additional_special_tokens", "eos_token", "pad_token", "tokenizer_class"):
        assert after[name] == before[name], name
    text = json.loads((folder / "config.json").read_text())["text_config"]
    assert "rope_theta" in text and "rope_parameters" not in text and text["use_cache"] is True


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_export_reads_text_and_images_as_the_first(kind, again, processor_dir):
    before, after = (transformers.AutoProcessor.from_pretrained(place) for place in (processor_dir, again[kind]))
    add_response_schema(after)
    for text in (TEXT, "<|vision_start|><|image_pad|><|vision_end|>What is this?"):
        assert after.tokenizer(text)["input_ids"] == before.tokenizer(text)["input_ids"]
    pixels = [one.image_processor(images=[picture()], return_tensors="pt")["pixel_values"] for one in (before, after)]
    assert torch.equal(*pixels)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_next_export_runs_in_transformers_4(again, tmp_path):
    found = run_in_version_4(again, tmp_path)
    for kind in KINDS:
        assert not any(found[kind]["loading"].values()), found[kind]["loading"]
        assert found[kind]["num_experts"] == (6 if kind == "moe" else None)
        assert found[kind]["rope_theta"] == 5_000_000.0
        assert found[kind]["image_size"] == {"shortest_edge": 64 * 64, "longest_edge": 160 * 160}


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_training_goes_on_from_what_trl_saved(kind, saved, data, tmp_path):
    config = get_recipe("demo")
    config.model = HfDirectory(saved[kind]).model
    config.run.folder = str(tmp_path / "run")
    config.data.path = str(data)
    config.data.packing = False
    config.parallel.world_size = config.parallel.tensor = 1
    config.training.steps = 2
    config.training.global_batch_rows = 1
    config.optimizer.warmup_tokens = 0
    config.checkpoint.start_from = str(saved[kind])
    write_run_yaml(config, tmp_path / "run.yaml", {})
    command = [sys.executable, "-m", "megatron_medx.cli", "train", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    first, second = (line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl"))
    difference = abs(first - stock_loss(saved[kind], config))
    assert difference <= LOSS_TOLERANCE
    assert second < first  # the same row again


def stock_loss(folder: Path, config: RunConfig) -> float:
    """Mean loss of the run's first row in the directory that TRL saved, nats a token."""
    row = build_row_dataset(config)[0]
    end = row.sample_tokens[0]
    sample = Sample(
        tokens_1S=row.tokens_1S[:, :end],
        labels_1S=row.labels_1S[:, :end],
        loss_weights_1S=row.loss_weights_1S[:, :end],
        positions_3S=row.positions_3S[:, :end],
        pixels_PC=row.pixels_PC,
        grids_I3=row.grids_I3,
    )
    stock = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = stock(**stock_arguments(config.model, sample)).logits[0]
    losses = torch.nn.functional.cross_entropy(logits, sample.labels_1S[0], reduction="none")
    weights = sample.loss_weights_1S[0]
    assert weights.sum() > 10
    return ((losses.double() * weights).sum() / weights.sum()).item()
