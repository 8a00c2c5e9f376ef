"""What `verify` finds by running both networks: on the fixed sample and on rows of a data folder, in any order."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from conversion_proof import DENSE, EXPERTS, LOGITS_TOLERANCE, stock_model
from safetensors.torch import load_file, save_file

from megatron_medx.checkpoint import verify as verify_module
from megatron_medx.checkpoint.convert import to_hf, to_megatron
from megatron_medx.checkpoint.hugging_face.hf_config import read_config
from megatron_medx.checkpoint.hugging_face.hf_directory import HfDirectory
from megatron_medx.checkpoint.megatron_files.megatron_directory import MegatronCheckpoint
from megatron_medx.checkpoint.running import logits as logits_module
from megatron_medx.checkpoint.running.logits import compare_outputs, fixed_sample, stock_arguments
from megatron_medx.checkpoint.running.megatron_logits import load_network, network_logits
from megatron_medx.checkpoint.verify import verify
from megatron_medx.errors import CheckpointError


@pytest.fixture(scope="module", params=[DENSE, EXPERTS], ids=["dense", "experts"])
def saved(request, tmp_path_factory):
    """A stock network, where transformers saved it, and that as a checkpoint."""
    folder = tmp_path_factory.mktemp("verify")
    model = stock_model(request.param)
    model.save_pretrained(folder / "hf")
    to_megatron(folder / "hf", folder / "root")
    return model, folder


@pytest.fixture
def here(monkeypatch, one_rank):
    """Megatron's network runs in this process, without the 8 s of imports of one of its own."""

    def write(checkpoint, samples, folder):
        network = load_network(checkpoint, one_rank)
        for number, sample in enumerate(samples):
            torch.save(network_logits(network, dataclasses.asdict(sample)), folder / f"{number}.pt")

    monkeypatch.setattr(logits_module, "write_megatron_logits", write)


def loss_by_hand(stock, sample):
    """Mean cross entropy of the weighted labels."""
    with torch.inference_mode():
        logits = stock(**stock_arguments(stock.config, sample)).logits[0].double()
    chances = logits.softmax(-1)[torch.arange(len(logits)), sample.labels_1S[0]]
    return -(chances.log() * sample.loss_weights_1S[0]).sum().item() / sample.loss_weights_1S.sum().item()


def test_both_networks_run_each_as_a_program_of_its_own(saved):
    stock, folder = saved
    report = verify(folder / "hf", folder / "root")
    assert report["bit_equal"] and report["worst"] == [] and report["logits_note"] == ""
    assert 0 < report["logits_max_abs_diff"] < LOGITS_TOLERANCE
    expected = loss_by_hand(stock, fixed_sample(read_config(folder / "hf" / "config.json")))
    # worst of both sides and networks on 2026-11-23: 1.1e-7
    assert [report["loss_first"], report["loss_second"]] == pytest.approx([expected] * 2, abs=1e-6)


def test_any_two_can_be_compared(saved, here, tmp_path):
    _, folder = saved
    to_hf(folder / "root", tmp_path / "back")
    to_megatron(tmp_path / "back", tmp_path / "again")
    for first, second, one_program in (
        (folder / "root", folder / "hf", False),
        (folder / "hf", tmp_path / "back", True),
        (folder / "root", tmp_path / "again", True),
    ):
        report = verify(first, second)
        assert report["bit_equal"] and (report["logits_max_abs_diff"] == 0) == one_program, (first, second)
        assert report["loss_first"] == pytest.approx(report["loss_second"], abs=0 if one_program else 1e-6)


def test_a_changed_weight_shows_in_logits_and_loss(saved, here, tmp_path):
    stock, folder = saved
    shutil.copytree(folder / "hf", tmp_path / "changed")
    bias = stock.model.visual.merger.linear_fc2.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias[0] += 1
        stock.save_pretrained(tmp_path / "changed")
        bias.copy_(before)
    report = verify(tmp_path / "changed", folder / "root")
    assert not report["bit_equal"] and report["logits_max_abs_diff"] > 1e-4
    assert abs(report["loss_first"] - report["loss_second"]) > 1e-5
    assert [entry["name"] for entry in report["worst"]] == ["model.visual.merger.linear_fc2.bias"]


WRONG_FIELDS = {
    "rope_theta": (("text_config", "rope_theta"), 10000.0),
    "mrope_section": (("text_config", "rope_scaling", "mrope_section"), [6, 2, 0]),
    "deepstack_layers": (("vision_config", "deepstack_visual_indexes"), [0, 1]),
    "rms_norm_eps": (("text_config", "rms_norm_eps"), 1e-3),
}
"""Our name -> where it stands in config.json, and a wrong value."""


@pytest.mark.parametrize("field", WRONG_FIELDS)
def test_a_wrong_field_of_config_json_is_named_and_changes_what_is_computed(field, saved, here, tmp_path):
    _, folder = saved
    to_hf(folder / "root", tmp_path / "export")
    checkpoint = MegatronCheckpoint(folder / "root")
    sample = fixed_sample(checkpoint.model)
    right = compare_outputs(HfDirectory(tmp_path / "export"), checkpoint, [sample])
    assert right.logits_max_abs_diff < LOGITS_TOLERANCE
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    (*sections, name), value = WRONG_FIELDS[field]
    section = config
    for one in sections:
        section = section[one]
    assert section[name] != value
    section[name] = value
    (tmp_path / "export" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"different networks: (vision\.)?{field}"):
        verify(tmp_path / "export", folder / "root")
    wrong = compare_outputs(HfDirectory(tmp_path / "export"), checkpoint, [sample])
    assert wrong.logits_max_abs_diff > 1e-3, "not even its logits would tell"


def test_the_fixed_sample_has_two_uneven_images_and_predicts_text_alone(saved):
    sample = fixed_sample(read_config(saved[1] / "hf" / "config.json"))
    sides = {tuple(grid[1:]) for grid in sample.grids_I3.tolist()}
    assert len(sides) == 2 and all(height != width for height, width in sides)
    learned = sample.loss_weights_1S[0] > 0
    assert not set(sample.labels_1S[0][learned].tolist()) & {90, 91, 92, 93} and learned.sum() > 15
    assert torch.equal(sample.labels_1S[0, :-1], sample.tokens_1S[0, 1:]) and not learned[-1]


def test_several_samples_count_by_their_weights_and_one_may_have_no_image(saved, here):
    stock, folder = saved
    sample = fixed_sample(read_config(folder / "hf" / "config.json"))
    text = dataclasses.replace(
        sample,
        tokens_1S=torch.tensor([[5, 6, 7, 8]]),
        labels_1S=torch.tensor([[6, 7, 8, 0]]),
        loss_weights_1S=torch.tensor([[0.0, 2.0, 0.5, 0.0]]),
        positions_3S=torch.arange(4).expand(3, -1),
        pixels_PC=sample.pixels_PC[:0],
        grids_I3=sample.grids_I3[:0],
    )
    report = verify(folder / "root", folder / "hf", samples=[sample, text])
    weights = [one.loss_weights_1S.sum().item() for one in (sample, text)]
    losses = [loss_by_hand(stock, one) for one in (sample, text)]
    expected = sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert report["loss_first"] == pytest.approx(expected, abs=1e-6)
    assert report["loss_second"] == pytest.approx(expected, abs=1e-6)


def test_values_that_are_not_finite_are_none_because_json_has_no_nan(saved, here, tmp_path):
    _, folder = saved
    to_hf(folder / "root", tmp_path / "nan")
    path = tmp_path / "nan" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.language_model.norm.weight"][0] = math.nan
    save_file(tensors, path, metadata={"format": "pt"})
    report = verify(tmp_path / "nan", folder / "root")
    assert report["logits_max_abs_diff"] is None and report["loss_first"] is None and report["loss_second"] > 0
    json.dumps(report, allow_nan=False)


def test_a_network_that_does_not_fit_is_not_run_and_both_numbers_are_said(saved, monkeypatch):
    _, folder = saved
    monkeypatch.setattr(verify_module, "available_bytes", lambda: 700_000_000)
    report = verify(folder / "hf", folder / "root")
    assert report["bit_equal"] and report["logits_max_abs_diff"] is report["loss_first"] is None
    assert report["logits_note"] == "to run the model in fp32 takes 1.0 GB of memory, 0.7 GB are available"
    monkeypatch.setattr(verify_module, "available_bytes", lambda: 10**12)
    monkeypatch.setattr(verify_module, "LOGITS_LIMIT_BYTES", 100_000)
    assert verify(folder / "hf", folder / "root")["logits_note"].endswith("above 0 GB it is not run")
    report = verify(folder / "hf", folder / "root", tensors_only=True)
    assert report["bit_equal"] and report["logits_note"] == "only tensors were to be compared"
