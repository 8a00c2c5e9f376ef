"""The GPU benchmark without a GPU: configurations, arithmetic by hand, verdicts and exit codes of made-up figures.

What its programs do on a tiny network, `python -m benchmarks.gpu` tries where there is no GPU.
"""

import json
import time

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import report, runs, sections, shapes
from megatron_medx.config.memory import worst_rank
from megatron_medx.errors import ConfigError

H100 = shapes.H100


def run(tokens_per_s, tflops=500.0, **more):
    """Figures of a measured run."""
    return {"tokens_per_s": tokens_per_s, "model_tflops_per_s": tflops, "step_s": 2.0, "layers": 16, **more}


@pytest.fixture
def measured():
    """Results that reach every target."""
    rival = run(20_000.0, 250.0, decoder_share=0.8)
    quantity = {"torch": 0.01, "te": 0.012, "limit": 0.024, "within": True}
    return {
        "specs": {"compare": {"transformer_engine": True, "quantities": {"logits": quantity}}},
        "speed": {
            "2b": run(30_000.0, peak_bytes=60e9, data_wait_share=0.01),
            "4b": run(28_000.0),
            "2b transformers": {"best": dict(rival)},
            "4b transformers": {"best": dict(rival)},
            "4b tensorwise": run(36_400.0),
            "4b delayed": {"error": "x" * 900},
        },
        "fp8": {recipe: {"gap": 0.001} for recipe in shapes.FP8_RECIPES},
        "plan": {"2b": {"relative_error": -0.15}},
    }


def judged(results):
    return {v.name: v for v in report.verdicts(results, "NVIDIA H100 80GB HBM3", list(gpu.SECTIONS))}


def test_every_configuration_can_run_and_fits():
    lines = gpu.check_configurations()
    assert len(lines) == 4 and "2b: 28 of 28 layers" in lines[0]
    for size in shapes.SIZES:
        config = shapes.speed_run(size, "data", "run", device=H100)
        assert sum(worst_rank(config).values()) <= 0.85 * H100.memory_bytes
        assert config.data.seq_len_tokens % 128 == 0  # blockwise FP8


def test_a_network_that_fits_nowhere_is_refused():
    with pytest.raises(ConfigError, match="4 layers on toy"):
        shapes.speed_run("4b", "data", "run", device=shapes.Device("toy", 10**9))


def test_the_largest_depth_that_fits_is_taken():
    """FP8 needs more than bf16, and both are measured at one depth."""
    layers = {
        words: shapes.speed_run("4b", "data", "run", device=H100, words=words).model.num_layers
        for words in ((), ("precision.fp8=tensorwise",))
    }
    assert len(set(layers.values())) == 1
    config = shapes.speed_run("4b", "data", "run", device=H100, words=("precision.fp8=tensorwise",))
    config.model.num_layers += shapes.LAYER_STEP
    assert sum(worst_rank(config).values()) > 0.85 * H100.memory_bytes


def test_mfu_and_ratios_by_hand():
    assert report.mfu({"model_tflops_per_s": 494.7}, "NVIDIA H200") == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="no peak stated for NVIDIA A10"):
        report.mfu({"model_tflops_per_s": 1.0}, "NVIDIA A10")
    assert report.ratio(run(30.0), run(20.0)) == 1.5
    assert report.ratio(run(30.0), {"error": "out of memory"}) is None
    assert report.ratio(None, run(20.0)) is None


def test_made_up_figures_that_reach_all_targets(measured):
    verdicts = judged(measured)
    assert len(verdicts) == 10 and all(verdict.reached for verdict in verdicts.values())
    assert verdicts["4b FP8 over bf16"].found == pytest.approx(1.3)
    assert verdicts["2b bf16 over transformers"].found == 1.5
    assert verdicts["MFU, 2b bf16"].found == pytest.approx(500 / 989.4)


@pytest.mark.parametrize(
    ("section", "piece", "figures", "target"),
    [
        ("speed", "2b", run(30_000.0, 440.0), "MFU, 2b bf16"),
        ("speed", "4b", run(25_000.0), "4b bf16 over transformers"),
        ("speed", "4b tensorwise", run(33_000.0), "4b FP8 over bf16"),
        ("fp8", "blockwise", {"gap": 0.0051}, "FP8 gate, blockwise"),
        ("fp8", "blockwise", {"gap": None}, "FP8 gate, blockwise"),
        ("plan", "2b", {"relative_error": 0.21}, "predicted step time, 2b"),
        ("specs", "compare", {"error": "no"}, "Transformer Engine against torch, worst distance over its limit"),
    ],
)
def test_each_target_can_be_missed(measured, section, piece, figures, target):
    measured[section][piece] = figures
    verdicts = judged(measured)
    assert [name for name, verdict in verdicts.items() if not verdict.reached] == [target]


def test_layers_that_were_not_transformer_engines_prove_nothing(measured):
    measured["specs"]["compare"]["transformer_engine"] = False
    verdict = judged(measured)["Transformer Engine against torch, worst distance over its limit"]
    assert verdict.found is None and not verdict.reached


def test_a_shape_that_the_tower_binds_has_no_mfu_target(measured):
    measured["speed"]["2b transformers"]["best"]["decoder_share"] = 0.6
    assert "MFU, 2b bf16" not in judged(measured) and "MFU, 4b bf16" in judged(measured)


@pytest.mark.parametrize(("gap", "code"), [(0.001, 0), (0.02, 1)])
def test_exit_code_and_last_line(measured, monkeypatch, tmp_path, capsys, gap, code):
    measured["fp8"]["delayed"] = {"gap": gap, "why": "made up"}
    out = tmp_path / "results.json"
    out.write_text(json.dumps(measured))
    monkeypatch.setattr(gpu, "found_device", lambda: shapes.Device("NVIDIA H100 80GB HBM3", 81559 * 2**20))
    monkeypatch.setattr(gpu, "SECTIONS", dict.fromkeys(gpu.SECTIONS, lambda bench: None))
    assert gpu.main(["--out", str(out)]) == code
    printed = capsys.readouterr().out
    line = json.loads(printed.splitlines()[-1])
    assert line["reached"] is (code == 0) and line["targets"]["FP8 gate, delayed"]["found"] == gap
    assert ("MISSED" in printed) is (code == 1) and "failed: 'xxx" in printed and "60.0" in printed


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "found_device", lambda: None)
    assert gpu.main(["--only-check"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("no GPU here") and json.loads(printed.splitlines()[-1])["failures"] == []


def test_a_failed_tiny_run_is_exit_code_1(monkeypatch):
    monkeypatch.setattr(gpu, "found_device", lambda: None)
    monkeypatch.setattr(gpu, "try_without_gpu", lambda sections: ["speed: 2b: failed"])
    assert gpu.main([]) == 1


def test_unknown_sections_are_refused(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--sections", "specs,sped"])
    assert "no section sped" in capsys.readouterr().err


@pytest.fixture
def bench(tmp_path):
    return sections.Bench(tmp_path, tmp_path, tmp_path / "out.json", H100, time.monotonic() + 100)


def test_pieces_are_written_at_once_and_not_repeated(bench):
    def fails(programs):
        raise runs.Failed("CUDA out of memory")

    assert bench.piece("speed", "a", 1, lambda programs: {"tokens_per_s": 1.0})["tokens_per_s"] == 1.0
    assert bench.piece("speed", "b", 1, fails)["error"] == "CUDA out of memory"
    assert "left_out" in bench.piece("speed", "c", 1000, fails)
    assert set(json.loads(bench.out.read_text())["speed"]) == {"a", "b", "c"}
    assert bench.piece("speed", "a", 1, fails)["tokens_per_s"] == 1.0
    assert bench.piece("speed", "b", 1, lambda programs: {"tokens_per_s": 2.0})["tokens_per_s"] == 2.0


def test_a_run_without_memory_is_tried_with_fewer_layers(bench, monkeypatch):
    tried = []

    def train(programs, config, **options):
        tried.append(config.model.num_layers)
        if len(tried) < 3:
            raise runs.Failed("torch.OutOfMemoryError: CUDA out of memory")
        return run(1.0)

    monkeypatch.setattr(runs, "measured", train)
    monkeypatch.setattr(runs, "data_folder", lambda programs, source: source)
    programs = runs.Programs(bench.work, 1)
    sections.measured(bench, programs, size="2b", name="2b")
    assert tried == [28, 24, 20]
    bench.results = {"speed": {"2b": {"layers": 24}}}
    tried.clear()
    with pytest.raises(runs.Failed):  # others are compared with it
        sections.measured(bench, programs, size="2b", name="2b tensorwise")
    assert tried == [24]


def test_figures_are_sums_over_the_counted_steps():
    line = {"loss": 2.0, "tokens": 100, "images": 3, "data_wait_s": 0.1}
    steps = [
        line | {"step_time_s": 1.0, "model_tflops_per_s": 10.0},
        line | {"step_time_s": 3.0, "model_tflops_per_s": 2.0},
    ]
    found = runs.figures(steps, 4)
    assert found["tokens_per_s"] == 50.0 and found["model_tflops_per_s"] == 4.0 and found["step_s"] == 2.0
    assert found["data_wait_share"] == pytest.approx(0.05) and found["images"] == 6
    with pytest.raises(runs.Failed, match="without a finite loss"):
        runs.figures([line | {"loss": None}], 4)


def test_the_rivals_fastest_batch_counts():
    batches = {"4": run(10.0), "8": run(12.0), "16": {"error": "CUDA out of memory"}}
    assert runs.fastest(batches) == run(12.0, samples=8)
    with pytest.raises(runs.Failed, match="no batch size of 16"):
        runs.fastest({"16": batches["16"]})


def test_a_failed_program_tells_its_last_words(tmp_path):
    with pytest.raises(runs.Failed, match=r"ended with code 1.*No module named nothing_of_that_name"):
        runs.Programs(tmp_path, 60).run(["nothing_of_that_name"], tmp_path / "log")


def test_switches_stand_beside_the_run_as_shipped():
    switches = {"as shipped": run(100.0, last_loss=2.0), "fused rope": run(110.0, last_loss=2.0001)}
    switches |= {"unfused attention": {"error": "CUDA out of memory"}, "CUDA graphs": {"unusable": "shapes differ"}}
    words = {name: said for name, (said, _, _) in sections.SWITCHES.items()}
    lines = report.switch_lines(switches, words)
    assert "1.00 x    2.0000" in lines[1] and lines[2].startswith("rotary by Transformer Engine's kernel")
    assert "1.10 x" in lines[2] and "out of memory" in lines[3] and "cannot be used: shapes differ" in lines[4]
    assert report.switch_lines({}, words) == []


def test_a_profiled_step_by_hand():
    parts = {"MLP": {"forward_s": 0.1, "backward_s": 0.15, "kinds": {"matrix products": 0.2, "norms": 0.05}}}
    piece = runs.profile_figures({"step_s": [0.5], "busy_s": 0.3, "data_wait_s": 0.01, "parts": parts})
    lines = report.profile_lines("profile 2b", piece)
    assert "took 0.500 s" in lines[0] and "0.200 s of it without a kernel, 0.010 s waiting" in lines[0]
    assert "MLP 100.0%" in lines[1] and "matrix products 80.0%, norms 20.0%" in lines[2]
    assert report.scaled({"MLP": 0.2, "optimizer": 0.05}, 2, 16) == {"MLP": 1.6, "optimizer": 0.05}
