"""The lines before a run: derived numbers with their arithmetic, few enough to be read."""

from megatron_medx.config.describe import describe, learning_rate
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.recipes import get_recipe


def described(name: str, *overrides: str) -> str:
    return "\n".join(describe(apply_overrides(get_recipe(name), list(overrides))))


def test_a_cluster_run_in_twenty_lines():
    text = described("pretrain_8b")
    for part in (
        "world 64 = tensor 2 x data 32; sequence parallel",
        "512 rows x 8,192 = at most 4,194,304 tokens; rows / data 32 = 16 microbatches",
        "20,000 steps x 4,194,304 = at most 83.89 B tokens",
        "6,946,075,648 = 36 x 192,946,432 + 4,096",
        "622,329,856 = 151,936 x 4,096",
        "trained, lr 2e-06",
        "122.7 GB every 500 steps",
        "TFLOP a full row x 512 rows",
    ):
        assert part in text
    assert len(text.splitlines()) <= 20


def test_every_axis_in_one_line_and_what_stages_and_experts_hold():
    axes = (
        "tensor=2",
        "pipeline=4",
        "context=2",
        "virtual_pipeline=2",
        "first_stage_layers=8",
        "last_stage_layers=none",
    )
    text = described("pretrain_32b", *(f"parallel.{axis}" for axis in axes), "model.num_layers=62")
    assert "world 256 = tensor 2 x pipeline 4 x context 2 x data 16; virtual_pipeline 2; sequence parallel" in text
    assert "8 + 3 x 18 = 62 layers, each stage in 2 chunks; tower and embedding on the first" in text
    text = described("demo_moe", "parallel.expert=2")
    assert "world 2 = data 2; expert 2\n" in text
    assert "8 a layer, 2 for each token; 8 / expert 2 = 4 on a rank" in text
    assert "expert" not in described("demo") and "stages" not in described("demo")


def test_schedule_loss_and_recomputation():
    words = ("loss_average=sqrt", "on_bad_loss=skip", "recompute_vision=full")
    tokens = ("optimizer.schedule=wsd", "optimizer.warmup_tokens=5000", "optimizer.decay_tokens=20480")
    text = described("demo", *(f"training.{word}" for word in words), *tokens)
    assert "wsd, warm-up 5,000 tokens = 5 of 240 steps, decay 20,480 tokens = the last 20, down to 10%" in text
    assert "averaged per sample, weighted by the square root of its tokens; NaN or infinite: skip the update" in text
    assert "recompute none (tower full)" in text


def test_frozen_tied_and_passed_through():
    text = described("demo", "training.freeze=vision,merger", "megatron.manual_gc=true", "optimizer.language_lr=0.5")
    assert text.count("; frozen") == 2
    assert "trained, lr 0.5" in text
    assert "tied to the embeddings" in text
    assert " MFLOP an image of 100 patches" in text
    assert "manual_gc = True" in text


def test_an_image_that_fits_no_row_is_pointed_out():
    text = described("demo", "data.max_pixels=16777216")
    assert "a row holds 512, longer samples lose slices, then resolution" in text


def test_learning_rates_by_part():
    config = apply_overrides(get_recipe("demo"), ["optimizer.lr=1", "optimizer.vision_lr=2", "training.freeze=merger"])
    assert [learning_rate(config, part) for part in ("vision", "merger", "language")] == [2, None, 1]
