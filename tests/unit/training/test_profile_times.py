"""Seconds by part and kind, from traces by hand; and the text that tells of them."""

import gzip
import json

import pytest

from megatron_medx.training.profiling.intervals import Intervals
from megatron_medx.training.profiling.summary import summarize, summary_lines
from megatron_medx.training.profiling.timeline import Work
from megatron_medx.training.profiling.trace import read_trace, times
from megatron_medx.training.profiling.vocabulary import MARK, kind_of

EVALUATION = "autograd::engine::evaluate_function: "


def event(cat, name, ts, dur, tid=1, **args):
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid, "args": args}


def mark(part, ts, dur, tid=1):
    return event("user_annotation", MARK + part, ts, dur, tid)


def operator(name, ts, dur, tid=1, number=None, undoes=None):
    numbers = {} if number is None else {"Sequence number": number}
    return event("cpu_op", name, ts, dur, tid, **numbers, **({} if undoes is None else {"Fwd thread id": undoes}))


def launch(ts, correlation, tid=1, cat="cuda_runtime"):
    return event(cat, "cudaLaunchKernel", ts, 1, tid, correlation=correlation)


def microseconds(found):
    return {
        (work.part, "backward" if work.is_backward else "forward", work.kind): pytest.approx(seconds * 1e6)
        for work, seconds in found.seconds.items()
    }


ON_CPU = [
    operator("aten::mm", 0, 5),  # in no step
    mark("step", 10, 100),
    mark("data wait", 10, 5),
    mark("attention", 20, 20),
    operator("aten::matmul", 21, 9, number=7),
    operator("aten::mm", 22, 6),
    operator("LinearWithCommunication", 31, 8),
    operator("c10d::_allgather_base_", 31, 1),
    event("user_annotation", "gloo:all_gather", 32, 5, tid=9),
    mark("backward, rest", 50, 40),
    operator(f"{EVALUATION}MmBackward0", 52, 10, number=7, undoes=1),
    operator("MmBackward0", 53, 8, number=7, undoes=1),
    operator("aten::mm", 54, 4),
    operator(f"{EVALUATION}torch::autograd::AccumulateGrad", 70, 10),
    mark("gradient reduction", 72, 4),
    mark("optimizer", 95, 10),
    operator("aten::add_", 96, 3),
]


def test_without_a_gpu_the_thread_that_trains_counts():
    """Matmul forward and backward, a linear that waits for gloo, a reduction inside an accumulation."""
    found = times(ON_CPU)
    between = "between operators"
    assert microseconds(found) == {
        ("data wait", "forward", between): 5,
        ("other", "forward", between): 5 + 10 + 5 + 5,
        ("attention", "forward", between): 1 + 1 + (8 - 1 - 5) + 1,
        ("attention", "forward", "elementwise and others"): 9 - 6,
        ("attention", "forward", "matrix products"): 6,
        ("attention", "forward", "communication"): 1 + 5,
        ("backward, rest", "backward", between): 40 - 10 - 10,
        ("attention", "backward", between): 10 - 4,
        ("attention", "backward", "matrix products"): 4,
        ("gradient accumulation", "backward", between): 10 - 4,
        ("gradient reduction", "backward", between): 4,
        ("optimizer", "forward", between): 10 - 3,
        ("optimizer", "forward", "elementwise and others"): 3,
    }
    assert found.step_s == [pytest.approx(1e-4)] and not found.on_gpu
    assert sum(found.seconds.values()) == pytest.approx(sum(found.step_s)), "every moment of a step has one part"
    assert found.data_wait_s == pytest.approx(5e-6) and found.working_s() == pytest.approx(1e-4 - 5e-6 - 6e-6)
    assert found.top[0] == ("aten::mm", pytest.approx(10e-6)) and all("::" in name for name, _ in found.top)


def test_with_a_gpu_its_kernels_count():
    """A tower's product forward and backward, the loss, a copy outside of marks, an optimizer's kernel; 10 us idle."""
    found = times(
        [
            mark("step", 0, 100),
            mark("vision tower", 0, 10),
            operator("aten::mm", 2, 4, number=7),
            launch(3, 1),
            mark("loss", 20, 10),
            launch(22, 2),
            operator(f"{EVALUATION}MmBackward0", 40, 10, tid=2, number=7),
            operator("MmBackward0", 41, 9, tid=2, number=7, undoes=1),
            launch(45, 3, tid=2, cat="cuda_driver"),
            operator(f"{EVALUATION}torch::autograd::AccumulateGrad", 51, 4, tid=2),
            launch(52, 6, tid=2),
            launch(60, 4),
            mark("optimizer", 70, 10),
            launch(72, 5),
            launch(120, 8),  # behind the step
            event("kernel", "nvjet_hsh_128x256", 100, 50, 7, correlation=1),
            event("kernel", "cross_entropy_kernel", 150, 10, 7, correlation=2),
            event("kernel", "sm90_xmma_gemm_bf16", 170, 100, 7, correlation=3),
            event("kernel", "add_kernel", 200, 8, 7, correlation=6),
            event("gpu_memcpy", "Memcpy HtoD", 270, 5, 8, correlation=4),
            event("kernel", "multi_tensor_apply_adam", 270, 20, 7, correlation=5),
            event("kernel", "validation_kernel", 300, 20, 7, correlation=8),
        ]
    )
    assert microseconds(found) == {
        ("vision tower", "forward", "matrix products"): 50,
        ("vision tower", "backward", "matrix products"): 100,
        ("loss", "forward", "elementwise and others"): 10,
        ("gradient accumulation", "backward", "elementwise and others"): 8,
        ("other", "forward", "copies"): 5,
        ("optimizer", "forward", "elementwise and others"): 20,
    }
    assert found.on_gpu and found.busy_s * 1e6 == pytest.approx(180)
    assert found.top[0] == ("sm90_xmma_gemm_bf16", pytest.approx(1e-4))


def test_what_is_computed_again_belongs_to_the_backward_pass():
    """Of recomputation the engine's span holds marks, whose operations get sequence numbers of their own."""
    found = times(
        [
            mark("step", 0, 100),
            mark("backward, rest", 10, 80),
            operator(f"{EVALUATION}CheckpointFunctionBackward", 10, 80, number=3),
            mark("MLP", 20, 20),
            operator("aten::mm", 25, 10, number=30),
            operator(f"{EVALUATION}MmBackward0", 50, 20, number=30, undoes=1),
        ]
    )
    assert found.seconds[Work("MLP", True, "matrix products")] * 1e6 == pytest.approx(10)
    assert found.by_part()["MLP"] * 1e6 == pytest.approx(20 + 20)
    assert found.by_kind()["matrix products"] * 1e6 == pytest.approx(10)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_6", "attention cores"),
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopA_NNT", "matrix products"),
        ("void transformer_engine::normalization::rmsnorm_fwd_tuned_kernel<>", "norms"),
        ("transformer_engine::cast_transpose_fused_kernel_notaligned", "casts to FP8"),
        ("void at::native::vectorized_elementwise_kernel<4, silu>", "elementwise and others"),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", "communication"),
        ("aten::addmm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention cores"),
        ("aten::copy_", "copies"),
        ("aten::broadcast_tensors", "elementwise and others"),
        ("c10d::broadcast_", "communication"),
    ],
)
def test_kinds_are_read_off_names(name, kind):
    assert kind_of(name) == kind


def test_intervals_by_hand():
    intervals = Intervals([(7, 8), (0, 4), (2, 5)])
    assert intervals.length == 6 and intervals.covered(3, 7.5) == 2.5 and intervals.covered(5, 7) == 0
    assert intervals.hold(4.5) and not intervals.hold(6) and not intervals.hold(-1) and not intervals.hold(9)
    assert Intervals([]).length == 0 and Intervals([]).covered(0, 1) == 0 and not Intervals([]).hold(0)


def test_a_trace_is_read(tmp_path):
    path = tmp_path / "trace_rank_0.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": ON_CPU}).encode()))
    assert times(read_trace(path)).step_s == times(ON_CPU).step_s


def test_a_trace_without_a_step_has_no_seconds():
    found = times([operator("aten::mm", 0, 5)])
    assert found.step_s == [] and not found.seconds and not found.top


def summaries(*working_s):
    one = json.loads(json.dumps(summarize(times(ON_CPU), 0, 4, 4)))
    return [{**one, "rank": rank, "working_s": seconds} for rank, seconds in enumerate(working_s)]


def test_a_summary_holds_every_second():
    one = summarize(times(ON_CPU), 1, 4, 4)
    assert sum(s for part in one["parts"].values() for s in part["kinds"].values()) == pytest.approx(1e-4)
    for part in one["parts"].values():
        assert part["forward_s"] + part["backward_s"] == pytest.approx(sum(part["kinds"].values()))
    assert list(one["parts"])[:2] == ["data wait", "attention"], "in the order of a step"
    assert one["working_s"] + one["communication_s"] + one["data_wait_s"] == pytest.approx(1e-4)


def test_the_text_names_the_slowest_rank():
    lines = summary_lines(summaries(0.2, 0.5, 0.1))
    assert lines[0].startswith("steps 4 to 4 under PyTorch's profiler") and "mean of 3 ranks" in lines[1]
    (attention,) = (line for line in lines if line.startswith("attention  "))
    assert attention.split()[-3:] == ["30.0%", "0.0000", "0"]
    assert "rank 1 works longest, 0.5000 s a step; the others 0.1500 on average, and wait for it" in lines
    assert any(line.startswith("longest on rank 1") for line in lines)
    assert not any("works longest" in line for line in summary_lines(summaries(0.2)))


def test_a_gpu_without_a_kernel_is_a_row_of_its_own():
    one = {**summaries(0.2)[0], "on_gpu": True, "busy_s": 6e-5}
    (idle,) = (line for line in summary_lines([one]) if line.startswith("without a kernel"))
    assert idle.split()[-1] == "40.0%"
