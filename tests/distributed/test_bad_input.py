"""What a user can get wrong, through the real command: exit code 2, found / needed / do, and no traceback."""

import contextlib
import os
import shutil
import socket
import subprocess

import pytest
from agreement import assert_clear_error
from grids import ONE, SCENARIOS, SMALL
from medx_runs import stopped_at, tracker
from processes import end_session, wait_until
from small_data import build, conversation

WRONG_CONFIGURATIONS = {
    "recipe": (["dmeo"], ["unknown recipe dmeo", "did you mean demo?"]),
    "key": (["demo", "paralel.tensor=2"], ["paralel.tensor", "did you mean parallel.tensor"]),
    "value": (["demo", "training.steps=many"], ["training.steps", "many"]),
    "heads by tensor": (
        ["demo", *SMALL, "parallel.tensor=3", "--nproc", "3"],
        ["model.num_kv_heads 4", "parallel.tensor 3"],
    ),
    "layers by pipeline": (
        ["demo", *SMALL, "parallel.tensor=1", "parallel.pipeline=3", "--nproc", "3"],
        ["model.num_layers 4", "parallel.pipeline 3"],
    ),
    "samples by context": (
        ["demo", *SMALL, "parallel.tensor=1", "parallel.context=8", "--nproc", "8"],
        ["data.sample_align_tokens", "parallel.context 8", "nearest legal grid: parallel.tensor="],
    ),
    "ranks by grid": (["demo", *SMALL, "parallel.tensor=2", "--nproc", "3"], ["parallel.world_size 3", "--nproc 4"]),
    "several at once": (
        ["demo", *SMALL, "parallel.tensor=3", "model.vision.num_heads=5", "--nproc", "3"],
        ["model.num_kv_heads 4", "model.vision.hidden_size 36"],
    ),
    "no data": (["demo", *SMALL, "data.path=/nowhere"], ["/nowhere/manifest.json", "medx data demo"]),
    "no run.yaml": (["/nowhere/run.yaml"], ["/nowhere/run.yaml"]),
    "start_from nothing": (["demo", *SMALL, "checkpoint.start_from=/nowhere"], ["checkpoint.start_from", "/nowhere"]),
    "megatron argument of ours": (["demo", *SMALL, "megatron.lr=1"], ["megatron.lr", "optimizer.lr"]),
}  # fmt: skip
"""What is wrong -> words after `medx train`, words of the message."""


@pytest.mark.parametrize("name", WRONG_CONFIGURATIONS)
def test_wrong_configurations_are_refused_before_torch_starts(name, runs):
    words, said = WRONG_CONFIGURATIONS[name]
    folder = runs.folder / "never_made"
    given = [f"data.path={runs.data}"] if not any(word.startswith("data.path") for word in words) else []
    run = runs.medx(["train", words[0], f"run.folder={folder}", *given, *words[1:]], folder)
    assert_clear_error(run, *said)
    assert run.duration_s < 5
    assert not folder.exists()


# Runs that need ranks, or the run of another test. Each is a function of the queue, started when this module starts.


def port_in_use(runs):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        return runs.train("port", *SMALL, environment={"MASTER_PORT": port}), port


def data_like(runs, name, records):
    """A data folder beside the good one, with its processor and images but other samples."""
    folder = runs.folder / name
    shutil.copytree(runs.data / "source", folder / "source")
    return build(folder / "source", folder, records)


def damaged_shard(runs):
    """One byte in the middle of an image changes after the build."""
    data = data_like(runs, "data_cut", [conversation("cut-1", "What?", "Noise.", ("square",))])
    [shard] = (data / "shards").iterdir()
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    return runs.train("shard_damaged", *SMALL, f"data.path={data}", grid="tp2")


def shortened_shard(runs):
    data = data_like(runs, "data_short", [conversation("cut-1", "What?", "Noise.", ("square",))])
    [shard] = (data / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:5000])
    return runs.train("shard_short", *SMALL, f"data.path={data}")


def another_tokenizer(runs):
    folder = runs.folder / "data_other_tokenizer"
    shutil.copytree(runs.data, folder)
    template = folder / "processor" / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    return runs.train("tokenizer", *SMALL, f"data.path={folder}")


def placeholder_in_text(runs):
    records = [conversation("good", "Why?", "So."), conversation("odd-7", "What is <|image_pad|>?", "A word.")]
    return runs.train("placeholder", *SMALL, f"data.path={data_like(runs, 'data_word', records)}")


def sample_too_long(runs):
    records = [conversation("good", "Why?", "So."), conversation("endless", "Why?", "So it goes on. " * 300)]
    return runs.train("too_long", *SMALL, f"data.path={data_like(runs, 'data_long', records)}")


def occupied_folder(runs):
    whole = runs.scenario("ten steps", ONE).result().ok()
    before = (whole.folder / "metrics.jsonl").read_bytes()
    return runs.train("again", *SMALL, folder=whole.folder), before


def nothing_to_resume(runs):
    return runs.train("fresh", *SMALL, "--resume")


def another_architecture(runs):
    whole = runs.scenario("ten steps", ONE).result().ok()
    before = (whole.folder / "run.yaml").read_bytes(), (whole.checkpoints / "run.yaml").read_bytes()
    run = runs.resume(whole, "other_layers", "model.num_layers=2", "training.steps=12")
    return run, before


def start_from_another_architecture(runs):
    whole = runs.scenario("ten steps", ONE).result().ok()
    words = (f"checkpoint.start_from={whole.checkpoints}", "model.ffn_hidden_size=256")
    return runs.train("start_other", *SMALL, *words)


def start_from_no_checkpoint(runs):
    folder = runs.folder / "no_checkpoint"
    folder.mkdir()
    return runs.train("start_empty", *SMALL, f"checkpoint.start_from={folder}")


def unknown_megatron_argument(runs):
    return runs.train("megatron", *SMALL, "megatron.overlap_grad_reduc=true")


def killed_while_saving(runs):
    """Every process of the run dies while the checkpoint of step 10 is being written; then the run goes on."""
    whole = runs.scenario("ten steps", ONE).result().ok()
    source = stopped_at(5, whole, runs.folder / "before_the_kill")

    def kill_all(launcher, folder):
        wait_until((folder / "checkpoints" / "iter_0000010").exists, launcher, "the save", interval_s=0.001)
        end_session(launcher)

    killed = runs.resume(source, "killed_while_saving", while_running=kill_all)
    state = tracker(killed.folder), (killed.checkpoints / "iter_0000010" / "metadata.json").exists()
    return killed, state, runs.resume(killed, "after_the_kill")


def full_disk(runs):
    """The disk of the run folder, a small tmpfs, fills up before the save at step 10; then room is made."""
    disk = runs.folder / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(disk)]).returncode:
        return None
    ballast = disk / "ballast"

    def fill(launcher, folder):
        wait_until(lambda: tracker(folder) == "5", launcher, "the first checkpoint")
        free = shutil.disk_usage(disk).free
        with open(ballast, "wb") as file, contextlib.suppress(OSError):
            file.write(bytes(max(0, free - 1_000_000)))

    try:
        words = (*SMALL, *SCENARIOS["ten steps"])
        full = runs.train("disk", *words, folder=disk / "run", while_running=fill)
        state = tracker(full.folder)
        ballast.unlink()
        shutil.copytree(full.folder, runs.folder / "disk_was_full")
        moved = type(full)(full.code, full.stdout, full.stderr, runs.folder / "disk_was_full", full.duration_s)
        return full, state, runs.resume(moved, "disk_has_room")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


FLOWS = (
    full_disk, killed_while_saving, port_in_use, damaged_shard, shortened_shard, another_tokenizer, placeholder_in_text,
    sample_too_long, occupied_folder, nothing_to_resume,
    another_architecture, start_from_another_architecture, start_from_no_checkpoint,
    unknown_megatron_argument,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def results(runs):
    """All flows of this module, started at once."""
    return {flow: runs.submit(flow) for flow in FLOWS}


def test_a_port_in_use_is_named(results):
    run, port = results[port_in_use].result()
    assert_clear_error(run, f"MASTER_PORT={port}", "unset MASTER_PORT")
    assert run.duration_s < 5


def test_a_sample_that_changed_after_the_build_is_named_with_its_shard(results):
    run = results[damaged_shard].result()
    assert_clear_error(run, "data_cut/shards/", "sample number 0", "max_bad_fraction")
    assert run.said.count("found:") == 1, "one rank speaks for all"


@pytest.mark.parametrize(
    ("flow", "said"),
    [
        (shortened_shard, ("has 5000 bytes", "as the manifest says")),
        (another_tokenizer, ("data_other_tokenizer/processor have fingerprint", "data.processor")),
        (placeholder_in_text, ("1 samples rejected by the build", "data_word/rejects.jsonl", "max_bad_fraction = 0")),
        (sample_too_long, ("1 that fit no row, of 2", "data/rejects.jsonl", "raise data.seq_len_tokens")),
    ],
    ids=["shortened shard", "another tokenizer", "placeholder in a text", "too long"],
)
def test_data_that_cannot_be_trained_on_are_refused_before_ranks_start(results, flow, said):
    run = results[flow].result()
    assert_clear_error(run, *said)
    assert not (run.folder / "run.yaml").exists() and not list(run.folder.glob("logs/*"))


def test_a_folder_that_holds_a_run_is_left_alone(results):
    run, before = results[occupied_folder].result()
    assert_clear_error(run, "already holds a run", "--resume")
    assert (run.folder / "metrics.jsonl").read_bytes() == before


def test_resuming_nothing_says_so_and_leaves_no_folder(results):
    run = results[nothing_to_resume].result()
    assert_clear_error(run, "no complete checkpoint")
    assert not run.folder.exists()


def test_resuming_another_architecture_is_refused_with_both_values(results):
    run, before = results[another_architecture].result()
    assert_clear_error(run, "model.num_layers", "4", "2")
    assert len(run.metrics()) == 10, "nothing was trained"
    now = [(place / "run.yaml").read_text().count("num_layers: 4") for place in (run.folder, run.checkpoints)]
    assert now == [text.decode().count("num_layers: 4") for text in before], "run.yaml still describes the checkpoint"


def test_starting_from_another_architecture_is_refused_with_both_values(results):
    run = results[start_from_another_architecture].result()
    assert_clear_error(run, "model.ffn_hidden_size", "120", "256")
    assert not run.metrics()


def test_starting_from_a_folder_without_checkpoint_is_refused(results):
    run = results[start_from_no_checkpoint].result()
    assert_clear_error(run, "no_checkpoint")
    assert not run.metrics()


def test_an_unknown_megatron_argument_is_refused_with_the_nearest(results):
    run = results[unknown_megatron_argument].result()
    assert_clear_error(run, "overlap_grad_reduc", "overlap_grad_reduce")


def test_a_save_that_was_killed_leaves_the_checkpoint_before_it(results, runs):
    _, (step, is_complete), resumed = results[killed_while_saving].result()
    assert step == "5" and not is_complete, "the kill came too late to prove anything"
    undisturbed = runs.scenario("ten steps", ONE).result()
    assert resumed.ok().column("step") == list(range(1, 11))
    assert resumed.column("loss") == undisturbed.column("loss")


def test_a_full_disk_is_named_and_the_checkpoint_before_it_is_usable(results, runs):
    outcome = results[full_disk].result()
    if outcome is None:
        pytest.skip("mounting a tmpfs is not permitted here")
    full, step, resumed = outcome
    assert_clear_error(full, "no space left", "--resume")
    assert step == "5"
    undisturbed = runs.scenario("ten steps", ONE).result()
    assert resumed.ok().column("step") == list(range(1, 11))
    assert resumed.column("loss") == undisturbed.column("loss")
