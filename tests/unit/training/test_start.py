"""What a run may start from, what becomes of it, and what is refused."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from megatron_medx.checkpoint.content import Content, write_megatron_root
from megatron_medx.checkpoint.hugging_face.hf_config import config_json
from megatron_medx.checkpoint.layout.rules import bindings, hf_shapes
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.checkpoint.megatron_files.megatron_directory import MegatronCheckpoint
from megatron_medx.config.checkpoint_folders import (
    METADATA_FILE,
    RELEASE,
    RUN_FILE,
    TRACKER_FILE,
    is_hf_directory,
    step_of,
    weights_folder,
)
from megatron_medx.config.checks import check_files
from megatron_medx.config.files import read_run_yaml, write_run_yaml
from megatron_medx.config.model import ModelConfig, VisionConfig
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import CheckpointError, ConfigError
from megatron_medx.training.prepare_run import prepare_folder
from megatron_medx.training.start import START, prepare_start, starting_weights


@pytest.fixture
def config(tmp_path) -> RunConfig:
    """A run of the smallest network."""
    vision = VisionConfig(hidden_size=8, num_layers=1, num_heads=2, ffn_hidden_size=8, num_position_embeddings=4)
    model = ModelConfig(
        hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, ffn_hidden_size=8, vocab_size=8,
        mrope_section=(2, 1, 1), vision=vision, vision_start_token_id=4, vision_end_token_id=5, image_token_id=6,
        video_token_id=7,
    )  # fmt: skip
    config = RunConfig(model=model)
    config.run.folder = str(tmp_path / "run")
    return config


def hf_directory(folder, model, value=0.5):
    """A Hugging Face directory all of whose weights have one value."""
    folder.mkdir(exist_ok=True)
    tensors = {key: torch.full(shape, value) for key, shape in hf_shapes(bindings(model)).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_json(model, torch.float32, {})))
    return folder


def run_folder(folder, config, steps=(2, 4)):
    """A run folder with checkpoints as far as starting looks at them: tensors, run.yaml, tracker."""
    bound = bindings(config.model)
    content = Content(
        model=config.model,
        bound=bound,
        specs={key: TensorSpec(shape, torch.float32) for key, shape in hf_shapes(bound).items()},
        read=lambda one: tuple(map(torch.ones, one.hf_shapes)),
        folders=(folder / "none",),
        processor_folder=folder / "none",
    )
    root = folder / "checkpoints"
    write_megatron_root(content, root, "test", {}, overwrite=False)
    for step in steps:
        shutil.copytree(root / RELEASE, root / f"iter_{step:07d}")
        (root / TRACKER_FILE).write_text(str(step))
    shutil.rmtree(root / RELEASE)
    write_run_yaml(config, root / RUN_FILE, {})
    return folder


def started(config, tmp_path, start_from):
    """`prepare_start`; returns the folder with the tensors."""
    config.checkpoint.start_from = str(start_from)
    prepare_start(config, tmp_path / "run")
    return starting_weights(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("", "checkpoints/iter_0000004"),
        ("checkpoints", "checkpoints/iter_0000004"),
        ("checkpoints/iter_0000002", "checkpoints/iter_0000002"),
    ],
)
def test_run_folder_root_or_iteration_mean_one_checkpoint_which_is_recorded(config, tmp_path, given, taken):
    source = run_folder(tmp_path / "before", config)
    assert started(config, tmp_path, source / given) == source / taken
    assert config.checkpoint.start_from == str(source / taken)
    assert step_of(source / taken) == int(taken[-1])
    check_files_says_nothing_of_the_start(config)


def check_files_says_nothing_of_the_start(config):
    with pytest.raises(ConfigError) as caught:
        check_files(config)
    assert "start_from" not in str(caught.value)


def test_a_release_is_recorded_too(config, tmp_path):
    from megatron_medx.checkpoint.convert import to_megatron

    to_megatron(hf_directory(tmp_path / "hf", config.model), tmp_path / "root")
    assert started(config, tmp_path, tmp_path / "root") == tmp_path / "root" / "release"
    assert step_of(tmp_path / "root" / "release") is None


def test_a_hugging_face_directory_is_converted_into_the_run_folder(config, tmp_path):
    hf = hf_directory(tmp_path / "hf", config.model, 0.25)
    assert is_hf_directory(hf)
    weights = started(config, tmp_path, hf)
    assert weights == tmp_path / "run" / START / "release"
    assert config.checkpoint.start_from == str(hf)
    stored = MegatronCheckpoint(weights)
    assert all((stored.read(key) == 0.25).all() for key in stored.specs)


def test_a_conversion_is_reused_until_the_source_changes(config, tmp_path):
    hf = hf_directory(tmp_path / "hf", config.model, 0.25)
    weights = started(config, tmp_path, hf)
    first = os.stat(weights).st_ino
    assert os.stat(started(config, tmp_path, hf)).st_ino == first
    hf_directory(hf, config.model, 0.75)
    started(config, tmp_path, hf)
    assert (MegatronCheckpoint(weights).read("decoder.final_layernorm.weight") == 0.75).all()
    other = hf_directory(tmp_path / "other", config.model, 0.125)
    os.utime(weights.parent / TRACKER_FILE)  # newer than the other source
    started(config, tmp_path, other)
    assert (MegatronCheckpoint(weights).read("decoder.final_layernorm.weight") == 0.125).all()


def test_what_is_no_checkpoint_is_refused(config, tmp_path):
    with pytest.raises(CheckpointError, match=r"no folder /nowhere(.|\n)*run folder, a Megatron checkpoint or a Hug"):
        started(config, tmp_path, "/nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty holds no latest_checkpointed_iteration"):
        started(config, tmp_path, tmp_path / "empty")
    config.checkpoint.start_from = str(tmp_path / "empty")
    with pytest.raises(ConfigError, match="empty holds no latest_checkpointed_iteration"):
        check_files(config)
    check_files_of_a_resume = pytest.raises(ConfigError, match=r"data\.path is empty")
    with check_files_of_a_resume as caught:
        check_files(config, resume=True)
    assert "empty holds" not in str(caught.value)


def test_an_unfinished_save_is_refused(config, tmp_path):
    source = run_folder(tmp_path / "before", config)
    (source / "checkpoints" / "iter_0000004" / METADATA_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"has no metadata\.json"):
        started(config, tmp_path, source)
    assert started(config, tmp_path, source / "checkpoints" / "iter_0000002").name == "iter_0000002"


def test_a_root_without_run_yaml_or_with_a_tracker_of_another_kind_is_refused(config, tmp_path):
    source = run_folder(tmp_path / "before", config)
    root = source / "checkpoints"
    (root / TRACKER_FILE).write_text("release")
    with pytest.raises(CheckpointError, match=r"says release(.|\n)*newest checkpoint is a step, as iter_0000002 is"):
        started(config, tmp_path, root / "iter_0000002")
    (root / TRACKER_FILE).write_text("4")
    (root / RUN_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"has no run\.yaml"):
        started(config, tmp_path, source)


def test_another_network_is_refused_with_both_values_before_anything_is_converted(config, tmp_path):
    source = run_folder(tmp_path / "before", config)
    hf = hf_directory(tmp_path / "hf", config.model)
    config.model.ffn_hidden_size = 16
    for start_from in (source, hf):
        with pytest.raises(CheckpointError, match=r"model\.ffn_hidden_size 8 in the checkpoint and 16 asked for"):
            started(config, tmp_path, start_from)
    assert not (tmp_path / "run" / START).exists()


def test_an_optimizer_cannot_be_carried_from_where_there_is_none(config, tmp_path):
    config.checkpoint.carry_optimizer = True
    with pytest.raises(CheckpointError, match=r"is a Hugging Face directory, and checkpoint\.carry_optimizer=true"):
        started(config, tmp_path, hf_directory(tmp_path / "hf", config.model))
    with pytest.raises(CheckpointError, match="iter_0000004 holds no optimizer state"):
        started(config, tmp_path, run_folder(tmp_path / "before", config))


def test_an_optimizer_is_carried_only_where_the_same_parts_are_trained(config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "megatron_medx.checkpoint.megatron_files.torch_dist.OPTIMIZER_PREFIXES", ("vision.",)
    )  # some tensors are its
    config.training.freeze = ("vision", "merger")
    source = run_folder(tmp_path / "before", config)
    config.checkpoint.carry_optimizer = True
    config.training.freeze = ("merger", "vision")
    assert started(config, tmp_path, source) == weights_folder(source)
    config.training.freeze = ()
    with pytest.raises(CheckpointError, match=r"merger, vision frozen before and nothing frozen now(.|\n)*moments"):
        started(config, tmp_path, source)


def test_a_resume_keeps_the_record_of_what_the_run_started_from(tiny_run, tmp_path, save_at):
    source = run_folder(tmp_path / "before", tiny_run, steps=(3,))
    tiny_run.checkpoint.start_from = str(source)
    folder = prepare_folder(tiny_run, False, ["medx"])
    assert read_run_yaml(folder / RUN_FILE).checkpoint.start_from == str(source / "checkpoints" / "iter_0000003")
    save_at(folder / "checkpoints", 5)
    tiny_run.checkpoint.start_from = "named/again/and/gone"
    prepare_folder(tiny_run, True, ["medx"])
    assert read_run_yaml(folder / RUN_FILE).checkpoint.start_from == str(source / "checkpoints" / "iter_0000003")


def test_the_link_latest_means_the_checkpoint_it_points_to(config, tmp_path):
    source = run_folder(tmp_path / "before", config, steps=(3, 5))
    (source / "checkpoints" / "latest").symlink_to("iter_0000003")
    for path in (source / "checkpoints" / "latest", source / "checkpoints" / "iter_0000003"):
        assert weights_folder(path) == source / "checkpoints" / "iter_0000003"
    assert not is_hf_directory(source / "checkpoints" / "latest")


def test_an_export_is_a_hugging_face_directory_under_its_own_name_and_as_best(tmp_path):
    export = tmp_path / "exports" / "iter_0000003"
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    (export.parent / "best").symlink_to(export.name)
    assert is_hf_directory(export) and is_hf_directory(export.parent / "best")
