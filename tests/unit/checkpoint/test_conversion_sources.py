"""A Megatron checkpoint as the source of another: its weights alone, in another dtype, with a word on their origin."""

import json
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from conversion_networks import random_tensors, write_hf
from safetensors.torch import load_file, save_file

from megatron_medx.checkpoint.convert import megatron_content, to_hf, to_megatron
from megatron_medx.checkpoint.megatron_files.megatron_directory import MegatronCheckpoint
from megatron_medx.checkpoint.verify import bit_equal
from megatron_medx.config.files import write_run_yaml
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import CheckpointError


@pytest.fixture
def run(one_model, tmp_path):
    """A run folder with a checkpoint of step 120 as torch writes one, optimizer included; `hf` has its tensors."""
    write_hf(tmp_path / "hf", one_model, random_tensors(one_model))
    to_megatron(tmp_path / "hf", tmp_path / "converted")
    weights = MegatronCheckpoint(tmp_path / "converted")
    state = {key: weights.read(key) for key in weights.specs}
    state |= {f"optimizer.state.exp_avg.{key}": torch.randn(tensor.shape) for key, tensor in state.items()}
    root = tmp_path / "run" / "checkpoints"
    folder = root / "iter_0000120"
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    (root / "latest_checkpointed_iteration.txt").write_text("120")
    config = RunConfig(model=one_model)
    config.run.recipe = "pretrain_8b"
    write_run_yaml(config, root / "run.yaml", {"command": "medx train pretrain_8b", "commit": "abc"})
    (root / "processor").mkdir()
    (root / "processor" / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    return tmp_path / "run"


@pytest.mark.parametrize("name", [".", "checkpoints", "checkpoints/iter_0000120"])
def test_the_weights_alone_go_into_a_release(run, tmp_path, name):
    assert MegatronCheckpoint(run).has_optimizer
    to_megatron(run / name, tmp_path / "out")
    written = MegatronCheckpoint(tmp_path / "out")
    assert written.folder.name == "release" and not written.has_optimizer
    assert (tmp_path / "out" / "processor" / "chat_template.jinja").read_bytes() == b"{{ messages }}\r\n"
    to_hf(tmp_path / "out", tmp_path / "back")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("hf", "back"))
    assert set(before) == set(after) and all(bit_equal(before[key], after[key]) for key in before)


def test_run_yaml_names_the_run_and_the_step(run, tmp_path):
    to_megatron(run, tmp_path / "out", dtype="bf16")
    to_megatron(tmp_path / "out", tmp_path / "second")
    first, second = (yaml.safe_load((tmp_path / name / "run.yaml").read_text()) for name in ("out", "second"))
    source = {"path": f"{run}/checkpoints/iter_0000120", "step": 120, "recipe": "pretrain_8b"}
    source["provenance"] = {"command": "medx train pretrain_8b", "commit": "abc"}
    assert first["provenance"]["sources"] == [source]
    assert first["provenance"]["command"] == f"medx convert to-megatron {run} {tmp_path}/out --dtype bf16"
    [of_second] = second["provenance"]["sources"]
    assert (of_second["step"], of_second["recipe"]) == (None, None)
    assert of_second["provenance"]["sources"] == [source]


@pytest.mark.parametrize("source", ["hf", "run"])
@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_dtype_casts_either_source(run, tmp_path, source, name, dtype):
    to_megatron(tmp_path / source, tmp_path / "out", dtype=name)
    assert {spec.dtype for spec in MegatronCheckpoint(tmp_path / "out").specs.values()} == {dtype}
    to_hf(tmp_path / "out", tmp_path / "back")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("hf", "back"))
    assert all(bit_equal(after[key], before[key].to(dtype)) for key in before)
    with pytest.raises(CheckpointError, match="dtype 'fp8'"):
        to_megatron(tmp_path / source, tmp_path / "other", dtype="fp8")


@pytest.mark.parametrize("out", [".", "checkpoints", "checkpoints/iter_0000120"])
def test_the_source_is_never_the_output(run, out):
    before = sorted(path for path in run.rglob("*"))
    with pytest.raises(CheckpointError, match="is, or contains, the source"):
        to_megatron(run, run / out, overwrite=True)
    assert sorted(path for path in run.rglob("*")) == before


def test_a_directory_that_was_averaged_brings_its_origin(one_model, tmp_path):
    hf = write_hf(tmp_path / "hf", one_model, random_tensors(one_model))
    (hf / "run.yaml").write_text("provenance: {command: medx convert average}\n")
    to_megatron(hf, tmp_path / "out")
    [source] = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())["provenance"]["sources"]
    assert source == {"path": str(hf), "step": None, "recipe": None, "provenance": {"command": "medx convert average"}}
    (hf / "run.yaml").write_text("a: [")
    with pytest.raises(CheckpointError, match=r"run\.yaml cannot be read"):
        to_megatron(hf, tmp_path / "other")


def test_checkpoints_and_two_parents_can_be_read_in_another_process(run, one_model, tmp_path):
    text = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "tie_word_embeddings": False}
    config = json.loads((tmp_path / "hf" / "config.json").read_text())["text_config"]
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text(json.dumps({**config, **text}))
    decoder = {key.replace("language_model.", ""): value for key, value in tensors.items() if "visual" not in key}
    save_file(decoder, tmp_path / "text" / "model.safetensors")
    for content in (megatron_content(run), megatron_content(tmp_path / "text", vision_from=tmp_path / "hf")):
        read = pickle.loads(pickle.dumps(content.read))
        assert all(bit_equal(read(one)[0], tensors[one.hf_keys[0]]) for one in content.bound)


def test_neither_kind_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds neither config\.json nor latest_checkpointed_iteration\.txt"):
        to_megatron(tmp_path, tmp_path / "out")
