"""Every rule of `check` and `check_files` refuses what it is there for, in words a user can act on."""

import collections

import pytest

from megatron_medx.config import checks
from megatron_medx.config.checks import check, check_files
from megatron_medx.config.fields import keys_of
from megatron_medx.config.grid import DIVIDES
from megatron_medx.config.megatron_names import OURS
from megatron_medx.config.memory import checkpoint_bytes
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.config.run import RunConfig
from megatron_medx.config.values import BOUNDS, CHOICES, value_of
from megatron_medx.errors import ConfigError, ParallelismError
from megatron_medx.recipes import get_recipe


def changed(*overrides: str, recipe: str = "demo") -> RunConfig:
    return apply_overrides(get_recipe(recipe), list(overrides))


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["model.num_heads=3", "parallel.tensor=1"], "model.num_heads 3, model.num_kv_heads 2"),
        (["model.vision.num_heads=5"], "model.vision.hidden_size 96, model.vision.num_heads 5"),
        (["model.vision.num_heads=16"], "vision head size 6"),
        (["model.vision.deepstack_layers=1,4"], "tower of 4 layers"),
        (["model.vision.deepstack_layers=2,1"], "ascending, none twice"),
        (["model.vision.deepstack_layers=1,1"], "ascending, none twice"),
        (["model.num_layers=1"], "2 model.vision.deepstack_layers, 1 decoder layers"),
        (["model.vision.num_position_embeddings=255"], "num_position_embeddings=225 or 256"),
        (["model.mrope_section=8,5,5"], "sum 18"),
        (["model.mrope_section=4,6,6"], "height at most 5 and width at most 5"),
        (["model.head_dim=33"], "an even number"),
        (["data.min_pixels=30000"], "min_pixels at most max_pixels"),
        (["data.min_pixels=1000"], r"at least 1024 = \(2 x 16\)\^2"),
        (["model.image_token_id=4096"], "model.image_token_id 4096"),
        (["model.image_token_id=4083"], "four different ids below model.vocab_size 4096"),
        (["training.freeze=vison"], "any of vision, merger, language"),
        (["training.freeze=vision,vision"], "none twice"),
        (["training.freeze=vision,merger,language"], "at least one part that is trained"),
        (["optimizer.min_lr=1"], "min_lr at most lr"),
        (["training.steps=10", "optimizer.warmup_tokens=10000"], "optimizer.warmup_tokens=9216 or less"),
        (["optimizer.schedule=wsd"], "a decay of 1 to 236 steps"),
        (
            ["optimizer.schedule=wsd", "training.steps=10", "optimizer.decay_tokens=6145"],
            r"optimizer.decay_tokens 6145 = 7 steps \(1024 tokens a step\), training.steps 10, warm-up 4(.|\n)*"
            "from 1 to 6144",
        ),
        (["optimizer.decay_tokens=5"], "optimizer.decay_tokens=0, or optimizer.schedule=wsd"),
        (["checkpoint.carry_optimizer=true"], "an optimizer to carry"),
        (["precision.dtype=fp16"], "one of bf16, fp32"),
        (["training.recompute=some"], "one of none, selective, full"),
        (["training.recompute_vision=some"], "one of none, selective, full"),
        (["training.loss_average=row"], "one of token, sample, sqrt"),
        (["training.on_bad_loss=ignore"], "one of stop, skip, rollback"),
        (["data.sample_align_tokens=24"], r"data.sample_align_tokens 24(.|\n)*set data.seq_len_tokens=504 or 528"),
        (["data.decoder=dali", "data.num_workers=2"], "data.decoder dali, data.num_workers 2"),
        (["data.sample_align_tokens=1024"], r"set data.seq_len_tokens=1024, or"),
        (["megatron.overlap_p2p_comm=false"], "not set by hand"),
        (["megatron.pipeline_model_parallel_layout=E|L"], "write parallel.first_stage_layers=VALUE instead"),
        (["optimizer.schedule=wds"], "one of cosine, linear, constant, wsd"),
        (["megatron.tensor_model_parallel_size=2"], "write parallel.tensor=VALUE instead"),
        (["megatron.micro-batch-size=2"], "one row is one microbatch"),
        (["run.recipe="], "a folder for the run"),
        (["data.max_bad_fraction=1"], "data.max_bad_fraction at least 0 and below 1"),
        (["optimizer.lr=0"], "optimizer.lr above 0"),
    ],
)
def test_what_the_recipe_gets_wrong_is_a_config_error(overrides, match):
    with pytest.raises(ConfigError, match=match):
        check(changed(*overrides))


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["model.experts_per_token=0"], "model.experts_per_token 0, model.num_experts 8(.|\n)*from 1 to 8"),
        (["model.experts_per_token=9"], "model.experts_per_token 9, model.num_experts 8(.|\n)*from 1 to 8"),
        (["model.expert_ffn_hidden_size=0"], "model.expert_ffn_hidden_size 0, model.hidden_size 160"),
        (["model.expert_ffn_hidden_size=160"], "neither hidden_size nor half of it"),
        (["model.expert_ffn_hidden_size=80"], "neither hidden_size nor half of it"),
    ],
)
def test_a_mixture_of_experts_that_cannot_be_is_a_config_error(overrides, match):
    with pytest.raises(ConfigError, match=match):
        check(changed(*overrides, recipe="demo_moe"))


@pytest.mark.parametrize("key", BOUNDS)
def test_every_bound_refuses_a_value_outside(key):
    below = -1 if value_of(get_recipe("demo"), key) is None or BOUNDS[key].low == 0 else 0
    with pytest.raises((ConfigError, ParallelismError), match=f"{key} is {below}"):
        check(changed(f"{key}={below}"))


def test_every_number_of_the_configuration_is_judged():
    """A new field must get a bound, or a rule of its own."""
    numbers = {key for key, kind in keys_of(RunConfig).items() if kind in (int, float, int | None, float | None)}
    ruled = {f"model.{name}_token_id" for name in ("image", "video", "vision_start", "vision_end")}
    assert numbers - ruled == set(BOUNDS)


def test_tables_name_fields_that_exist():
    keys = set(keys_of(RunConfig))
    named = {*BOUNDS, *CHOICES}
    named |= {key for dividend, divisors, _ in DIVIDES for key in (dividend, *divisors)}
    named |= {ours for ours in OURS.values() if not ours.startswith("<")}
    assert named <= keys


def test_all_problems_are_listed_each_in_three_parts():
    with pytest.raises(ConfigError) as caught:
        check(changed("model.num_kv_heads=1", "training.freeze=x", "data.min_pixels=1"))
    message = str(caught.value)
    assert "3 problems" in message
    counts = collections.Counter(line.strip(" 123.").split(":")[0] for line in message.splitlines())
    assert counts["found"] == counts["needed"] == counts["do"] == 4  # three, and the error's own
    assert not isinstance(caught.value, ParallelismError)


def test_a_mixture_with_the_grid_is_a_config_error():
    with pytest.raises(ConfigError, match="2 problems"):
        check(changed("model.num_kv_heads=1", "training.freeze=x"))


def test_a_rule_keeps_quiet_about_a_field_that_is_already_wrong():
    with pytest.raises(ConfigError) as caught:
        check(changed("parallel.context=0"))
    assert "problems" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.steps=5", "parallel.tensor=2", "parallel.pipeline=2", "parallel.world_size=4"],
        ["parallel.tensor=1", "parallel.world_size=1"],
        ["parallel.tensor=1", "parallel.world_size=2"],
        ["training.steps=1", "optimizer.warmup_tokens=0"],
        ["training.steps=10", "optimizer.schedule=wsd", "optimizer.decay_tokens=6144"],
        ["model.vision.deepstack_layers=", "parallel.pipeline=4", "parallel.world_size=8"],
        ["model.tie_embeddings=false"],
        ["training.freeze=vision,merger"],
        ["megatron.overlap_grad_reduce=true"],
        ["training.loss_average=sample", "training.on_bad_loss=skip", "training.recompute_vision=full"],
    ],
)
def test_what_should_run_passes(overrides):
    check(changed(*overrides))


def make_data(folder):
    (folder / "data" / "processor").mkdir(parents=True)
    (folder / "data" / "manifest.json").write_text("{}\n")
    return f"data.path={folder / 'data'}", f"run.folder={folder / 'runs' / 'x'}"


def test_files_that_are_there_pass(tmp_path):
    check_files(changed(*make_data(tmp_path)))


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("data.path=", "data.path is empty"),
        ("data.path=/nowhere", "no /nowhere/manifest.json"),
        ("data.processor=/nowhere", "no folder /nowhere"),
        ("checkpoint.start_from=/nowhere", "checkpoint.start_from: no folder /nowhere"),
        ("run.folder={file}/x", "is a file"),
    ],
)
def test_files_that_are_missing_are_refused(tmp_path, override, match):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=match):
        check_files(changed(*make_data(tmp_path), override.format(file=tmp_path / "file")))


def test_a_full_disk_is_refused(tmp_path, monkeypatch):
    config = changed(*make_data(tmp_path))
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage(1, 1, 2 * checkpoint_bytes(config) - 1))
    with pytest.raises(ConfigError, match=r"0.1 GB free at .*\nneeded: 0.1 GB: two checkpoints"):
        check_files(config)


@pytest.mark.parametrize(
    ("keep_last", "there", "room", "said"),
    [
        (0, 0, 2, "two checkpoints"),
        (3, 0, 4, "4 checkpoints, the 3 that stay and the one being written\ndo: .*keep_last"),
        (3, 2, 2, "two checkpoints"),
        (3, 7, 1, "one more checkpoint"),
        (0, 7, 1, "one more checkpoint"),
    ],
)
def test_checkpoints_that_stay_need_room_and_those_that_are_there_have_it(
    tmp_path, monkeypatch, keep_last, there, room, said
):
    config = changed(*make_data(tmp_path), f"checkpoint.keep_last={keep_last}", f"run.folder={tmp_path}/run")
    for step in range(there):
        (tmp_path / "run" / "checkpoints" / f"iter_{step:07d}").mkdir(parents=True)
    usage = collections.namedtuple("usage", "total used free")
    free = room * checkpoint_bytes(config)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage(1, 1, free))
    check_files(config)
    free -= 1
    with pytest.raises(ConfigError, match=said):
        check_files(config)
