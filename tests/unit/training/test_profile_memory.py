"""What holds a rank's memory, and what is said and left when it does not last."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from megatron_medx.config.checks import check
from megatron_medx.config.memory import worst_rank
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.errors import ParallelismError
from megatron_medx.parallel.cpu import enable_cpu_backend
from megatron_medx.recipes import get_recipe
from megatron_medx.run_folder import events

enable_cpu_backend()

from megatron_medx.training.profiling import out_of_memory  # noqa: E402
from megatron_medx.training.profiling.memory_owners import MemoryOwners  # noqa: E402

MESSAGE = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is "
    "free. Of the allocated memory 70 GiB is allocated by PyTorch."
)


class Chunk(nn.Module):
    """A model of 10 x 10 weights as Megatron's wrapper holds it: gradients are views of one buffer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(10, 10, bias=False)
        self.layer.register_buffer("angles", torch.zeros(10))
        self.tied = self.layer.weight
        self.gradient_buffers = [SimpleNamespace(grad_data=torch.zeros(128))]


def wrapped(model):
    """The chunk behind a wrapper, whose `buffers` is a list as Megatron's is."""
    return SimpleNamespace(
        module=model, parameters=model.parameters, buffers=model.gradient_buffers, expert_parallel_buffers=[]
    )


@pytest.fixture
def owners(monkeypatch):
    """Of a chunk and of Adam after a step, whose main weights are the model's own."""
    from megatron_medx.training.profiling import memory_owners

    monkeypatch.setattr(memory_owners, "unwrap_model", lambda chunks: [chunk.module for chunk in chunks])
    model = Chunk()
    adam = torch.optim.AdamW(model.parameters())
    model.layer.weight.grad = torch.zeros(10, 10)
    adam.step()
    known = MemoryOwners()
    known.chunks, known.optimizer, known.stage = [wrapped(model)], SimpleNamespace(optimizer=adam), 0
    return known


def test_each_piece_of_memory_has_one_owner(owners):
    """400 bytes of weights that are tied, 40 of angles; a buffer of 512 and autograd's 400; two moments and a count."""
    assert owners.count() == {"weights": 440, "gradients": 912, "optimizer": 804}


def test_main_weights_of_their_own_are_the_optimizers(owners):
    main = nn.Parameter(torch.zeros(50))
    chained = [SimpleNamespace(optimizer=torch.optim.AdamW([main])), SimpleNamespace(optimizer=None)]
    owners.optimizer = SimpleNamespace(chained_optimizers=[SimpleNamespace(**vars(owners.optimizer)), *chained])
    assert owners.count()["optimizer"] == 804 + 200


def test_nothing_is_counted_before_anything_is_built():
    assert MemoryOwners().count() == {"weights": 0, "gradients": 0, "optimizer": 0}


COUNTED = {"weights": 2_000_000_000, "gradients": 1_000_000_000, "optimizer": 500_000_000}
ESTIMATE = {"weights": 1, "vision activations": 10**9, "decoder activations": 4 * 10**9, "logits": 2 * 10**9}


def test_the_largest_owner_is_named():
    said = out_of_memory.largest_owner(COUNTED, ESTIMATE, 10_000_000_000)
    assert said == (
        "10 GB were held = weights 2 + gradients 1 + optimizer 0.5 + activations and temporary tensors 6.5; most by "
        "activations and temporary tensors, of which decoder activations are the largest by estimate, 4 GB"
    )
    said = out_of_memory.largest_owner(COUNTED, ESTIMATE, 4_000_000_000)
    assert said.endswith("temporary tensors 0.5; most by weights")


def test_without_an_allocator_that_counts_activations_are_estimated():
    said = out_of_memory.largest_owner(COUNTED, ESTIMATE, None)
    assert said.startswith("10.5 GB were held") and "activations and temporary tensors 7 (by estimate)" in said


def run_with(*words):
    return apply_overrides(get_recipe("pretrain_8b"), ["data.path=data", *words])


def test_ways_out_are_legal_and_ordered_by_what_they_save():
    config = run_with("training.recompute=none", "training.recompute_vision=none")
    said = out_of_memory.ways_out(config)
    named = [text.split(" (") for text in said.removeprefix("set ").split(", then start again")[0].split(" or ")]
    before = sum(worst_rank(config).values())
    saved = []
    for change, words in named:
        changed = apply_overrides(config, [change])
        check(changed)
        saved.append(before - sum(worst_rank(changed).values()))
        assert words == f"{saved[-1] / 1e9:.3g} GB less by estimate)"
    assert len(named) == 3 and saved == sorted(saved, reverse=True) and saved[-1] > 0


def test_fragments_are_told_of_where_they_are_many():
    many, few = (out_of_memory.ways_out(run_with(), idle, 70_000_000_000) for idle in (8_000_000_000, 6_000_000_000))
    assert many.startswith("set PYTORCH_ALLOC_CONF=expandable_segments:True") and "8 of 70 GB lie idle" in many
    assert "PYTORCH" not in few


def test_where_no_field_helps_more_gpus_do(monkeypatch):
    monkeypatch.setattr(out_of_memory, "_changes", lambda config: iter(["parallel.tensor=3", "training.recompute=no"]))
    assert out_of_memory.ways_out(run_with()).startswith("take more GPUs, or lower data.seq_len_tokens")


@pytest.fixture
def rank(monkeypatch, tmp_path):
    """Rank 3 of a launch that began at step 20; what it tells."""
    monkeypatch.setenv("RANK", "3")
    arguments = SimpleNamespace(iteration=20)
    monkeypatch.setattr(out_of_memory, "get_args", lambda: arguments)
    monkeypatch.setattr(MemoryOwners, "watch", lambda self: None)
    told = []

    def train(config, steps_done):
        arguments.curr_iteration = 20 + steps_done
        with out_of_memory.explained(config, tmp_path, told.append):
            raise torch.OutOfMemoryError(MESSAGE)

    return SimpleNamespace(train=train, told=told, folder=tmp_path, arguments=arguments)


def test_in_the_first_step_it_is_the_users_to_mend(rank):
    with pytest.raises(ParallelismError) as error:
        rank.train(run_with(), steps_done=0)
    assert error.value.found.startswith(
        "rank 3 ran out of memory in step 21: CUDA out of memory. Tried to allocate 2.00 GiB; "
    )
    assert "most by activations" in error.value.found and "in step 21" in error.value.found
    assert error.value.do.startswith("set ") and rank.told == []
    (event,) = events.read(rank.folder)
    assert (event["event"], event["step"], event["rank"]) == ("out_of_memory", 21, 3) and "most by" in event["what"]


def test_later_it_is_explained_and_fails_like_any_error(rank):
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        rank.train(run_with(), steps_done=5)
    assert "rank 3 ran out of memory in step 26" in rank.told[0] and "do:" in rank.told[0]


def test_before_the_loop_begins_no_step_is_done(rank):
    del rank.arguments.iteration  # Megatron sets it when weights are loaded, and `curr_iteration` in the loop
    with (
        pytest.raises(ParallelismError, match="in step 1:"),
        out_of_memory.explained(run_with(), rank.folder, rank.told.append),
    ):
        raise torch.OutOfMemoryError(MESSAGE)


def test_other_errors_pass(rank):
    with pytest.raises(KeyError), out_of_memory.explained(run_with(), rank.folder, rank.told.append):
        raise KeyError("another")
    assert events.read(rank.folder) == [] and rank.told == []


def test_the_history_is_recorded_and_left_as_a_snapshot(rank, monkeypatch):
    """CUDA's functions by the names that this torch has."""
    calls = []

    def called(name):
        assert callable(getattr(torch.cuda.memory, name))
        return lambda *args, **kwargs: calls.append((name, args, kwargs))

    for name in ("_record_memory_history", "_dump_snapshot"):
        monkeypatch.setattr(torch.cuda.memory, name, called(name))
    with pytest.raises(ParallelismError, match=r"memory_rank_3\.pickle, for docs"):
        rank.train(run_with("log.memory_history=true"), steps_done=0)
    assert calls == [
        ("_record_memory_history", (), {"max_entries": out_of_memory.MAX_HISTORY}),
        ("_dump_snapshot", (str(rank.folder / "profile" / "memory_rank_3.pickle"),), {}),
    ]
