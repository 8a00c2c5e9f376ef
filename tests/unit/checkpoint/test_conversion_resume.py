"""Conversions by several processes, and conversions that are killed: the files are those of an undisturbed one."""

import errno
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from conversion_networks import random_tensors, tiny_model, write_hf

from megatron_medx.checkpoint import convert
from megatron_medx.checkpoint.average import average
from megatron_medx.checkpoint.content import Content, new_hf_directory
from megatron_medx.checkpoint.convert import to_hf, to_megatron
from megatron_medx.checkpoint.writing import finished_units
from megatron_medx.checkpoint.writing.finished_units import FinishedUnits, InterruptedConversion
from megatron_medx.cli import main
from megatron_medx.errors import CheckpointError

MODEL = tiny_model(experts=(5, 2))
SHARD_BYTES = 8_000
"""32 safetensors files and 29 data files of this network in float32."""

READ_S = 0.002
"""What one group of tensors takes in a slow conversion: about 0.2 s the whole."""

fork = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Direction -> source, undisturbed result of one process."""
    folder = tmp_path_factory.mktemp("sources")
    write_hf(folder / "hf", MODEL, random_tensors(MODEL))
    to_megatron(folder / "hf", folder / "root", shard_size_bytes=SHARD_BYTES)
    to_hf(folder / "root", folder / "back", shard_size_bytes=SHARD_BYTES)
    return {to_megatron: (folder / "hf", folder / "root"), to_hf: (folder / "root", folder / "back")}


def files(folder):
    """Relative path -> content; dates are not compared."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found["README.md"] = "README.md" in found
    if "run.yaml" in found:
        found["run.yaml"] = yaml.safe_load(found["run.yaml"])["model"]
    return found


def weight_files(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix in {".safetensors", ".distcp"})


def in_child(work):
    """Start a function in a forked process that can be killed; as in a worker, one OpenMP thread."""

    def run():
        torch.set_num_threads(1)
        os._exit(work())

    child = fork.Process(target=run)
    child.start()
    return child


def slow(direction, source, out, num_workers):
    """A conversion that takes a while; 0, or 2 as the command line."""
    original = convert.read_hf_group

    def read(weights, one):
        time.sleep(READ_S)
        return original(weights, one)

    convert.read_hf_group = read  # of this process alone: it was forked
    try:
        direction(source, out, shard_size_bytes=SHARD_BYTES, num_workers=num_workers)
    except CheckpointError:
        return 2
    return 0


@pytest.mark.parametrize("direction", [to_megatron, to_hf])
@pytest.mark.parametrize("num_workers", [2, 3, 50])
def test_the_files_do_not_depend_on_the_number_of_workers(sources, tmp_path, direction, num_workers):
    source, expected = sources[direction]
    assert len(weight_files(expected)) > 10
    direction(source, tmp_path / "out", shard_size_bytes=SHARD_BYTES, num_workers=num_workers)
    assert files(tmp_path / "out") == files(expected)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("direction", [to_megatron, to_hf])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_killed_at_random_moments_it_ends_with_the_same_files(sources, tmp_path, direction, num_workers):
    source, expected = sources[direction]
    out, moments = tmp_path / "out", random.Random(5)
    kept, num_kills = {}, 0
    while not out.exists():
        goal = len(kept) + moments.randint(0, 2 if num_workers == 1 else 1)
        child = in_child(lambda: slow(direction, source, out, num_workers))
        while child.is_alive() and num_records(out) < goal:
            time.sleep(0.001)
        child.join(moments.uniform(0, 0.02))
        if child.exitcode is not None:
            assert child.exitcode == 0
            break
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        num_kills += 1
        if not out.exists():
            now = {path.name: inode_and_time(path) for path in finished(tmp_path / "out.partial")}
            assert kept.items() <= now.items()
            kept = now
    assert num_kills >= 8, num_kills  # 12 to 21 were seen
    assert len(kept) > 5
    assert files(out) == files(expected)
    assert {path.name: inode_and_time(path) for path in weight_files(out)}.items() >= kept.items()


def num_records(out):
    return len(list((out.with_name(f"{out.name}.partial") / "finished").glob("*.json")))


def finished(partial):
    """Files that are recorded as finished; none where an attempt was killed before it had a folder."""
    names = FinishedUnits(partial).facts()
    return [path for path in weight_files(partial) if path.name in names]


def inode_and_time(path):
    return path.stat().st_ino, path.stat().st_mtime_ns


def killed_when(count, out, work):
    """Start a conversion by one process in a child that is killed when `count` files are finished."""

    def doomed():
        original = FinishedUnits.add

        def add(self, *facts):
            original(self, *facts)
            if num_records(out) == count:
                os.kill(os.getpid(), signal.SIGKILL)

        FinishedUnits.add = add
        work()
        return 0

    child = in_child(doomed)
    child.join()
    assert child.exitcode == -signal.SIGKILL and num_records(out) == count


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda source, options: os.utime(source / "model.safetensors"), "source files"),
        (lambda source, options: options.update(shard_size_bytes=2 * SHARD_BYTES), "plan"),
    ],
)
def test_another_conversion_starts_afresh_and_says_so(sources, tmp_path, caplog, change, part):
    source = Path(shutil.copytree(sources[to_megatron][0], tmp_path / "hf"))
    killed_when(3, tmp_path / "out", lambda: to_megatron(source, tmp_path / "out", shard_size_bytes=SHARD_BYTES))
    options = {"shard_size_bytes": SHARD_BYTES}
    before = {inode_and_time(path) for path in finished(tmp_path / "out.partial")}
    change(source, options)
    to_megatron(source, tmp_path / "out", **options)
    assert f"left by another conversion (other {part}); starting afresh" in caplog.text
    assert not before & {inode_and_time(path) for path in weight_files(tmp_path / "out")}


def test_the_same_conversion_goes_on_and_says_so(sources, tmp_path, caplog):
    source, expected = sources[to_megatron]
    killed_when(3, tmp_path / "out", lambda: to_megatron(source, tmp_path / "out", shard_size_bytes=SHARD_BYTES))
    to_megatron(source, tmp_path / "out", shard_size_bytes=SHARD_BYTES)
    assert "an earlier attempt finished 3 files; this one goes on" in caplog.text
    assert files(tmp_path / "out") == files(expected)


def test_a_finished_file_that_lost_bytes_is_written_again(sources, tmp_path):
    source, expected = sources[to_megatron]
    killed_when(2, tmp_path / "out", lambda: to_megatron(source, tmp_path / "out", shard_size_bytes=SHARD_BYTES))
    os.truncate(finished(tmp_path / "out.partial")[0], 100)
    to_megatron(source, tmp_path / "out", shard_size_bytes=SHARD_BYTES)
    assert files(tmp_path / "out") == files(expected)


def test_two_conversions_into_one_folder_are_refused(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(finished_units, "LOCK_WAIT_S", 0.0)
    source, expected = sources[to_hf]
    child = in_child(lambda: slow(to_hf, source, tmp_path / "out", 1))
    while not (tmp_path / "out.partial" / "fingerprint.json").is_file():
        time.sleep(0.002)
    with pytest.raises(CheckpointError, match=r"another process is writing .*out\.partial"):
        to_hf(source, tmp_path / "out", shard_size_bytes=SHARD_BYTES)
    child.join()
    assert child.exitcode == 0 and files(tmp_path / "out") == files(expected)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_sigterm_keeps_what_is_finished_and_says_so(sources, tmp_path, capfd, num_workers):
    source, expected = sources[to_hf]
    words = ["convert", "to-hf", str(source), str(tmp_path / "out"), "--shard-size", "8KB"]

    def work():
        original = convert.read_hf_group
        convert.read_hf_group = lambda *group: (time.sleep(10 * READ_S), original(*group))[1]
        logging.basicConfig(force=True)  # as outside of pytest: warnings go to stderr
        try:
            return main([*words, "--workers", str(num_workers)])
        except SystemExit as stop:
            return stop.code

    child = in_child(work)
    while num_records(tmp_path / "out") < 2:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGTERM)
    child.join()
    assert child.exitcode == 128 + signal.SIGTERM
    assert "finished files; run the same command again to go on" in capfd.readouterr().err
    assert main(words) == 0
    assert files(tmp_path / "out") == files(expected)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("direction", [to_megatron, to_hf])
def test_a_disk_that_fills_up_keeps_what_is_finished(sources, tmp_path, capfd, direction, num_workers):
    """A limit on the size of one file stands for the disk: the experts' files are larger than the others."""
    source, expected = sources[direction]

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (19_000, 19_000))
        try:
            direction(source, tmp_path / "out", shard_size_bytes=SHARD_BYTES, num_workers=num_workers)
        except InterruptedConversion as error:
            return 2 if "run the same command again" in error.do and os.strerror(errno.EFBIG) in error.found else 3
        return 0

    child = in_child(work)
    child.join()
    assert child.exitcode == 2
    kept = {inode_and_time(path) for path in finished(tmp_path / "out.partial")}
    assert kept
    direction(source, tmp_path / "out", shard_size_bytes=SHARD_BYTES)
    assert files(tmp_path / "out") == files(expected)
    assert kept <= {inode_and_time(path) for path in weight_files(tmp_path / "out")}


def content(read):
    bound = convert.bindings(MODEL)
    specs = {key: convert.TensorSpec(shape, torch.float32) for one in bound for key, shape in
             zip(one.hf_keys, one.hf_shapes, strict=True)}  # fmt: skip
    here = Path(__file__).parent
    return Content(
        model=MODEL, bound=bound, specs=specs, read=read, folders=(here,), processor_folder=here / "none", options=""
    )


def write(out, read, num_workers):
    options = {"overwrite": False, "shard_size_bytes": SHARD_BYTES, "num_workers": num_workers}
    with new_hf_directory(content(read), out, "test", **options):
        pass


def zeros(one):
    return tuple(map(torch.zeros, one.hf_shapes))


def test_bad_input_in_a_worker_arrives_whole_and_leaves_nothing(tmp_path):
    def read(one):
        time.sleep(0.01)
        if one.megatron_key == "decoder.final_layernorm.weight":
            raise CheckpointError("half a file", "a whole one", "copy it again")
        return zeros(one)

    with pytest.raises(CheckpointError) as caught:
        write(tmp_path / "out", read, 2)
    assert (caught.value.found, caught.value.needed, caught.value.do) == ("half a file", "a whole one", "copy it again")
    assert not isinstance(caught.value, InterruptedConversion)
    assert list(tmp_path.iterdir()) == []


def test_a_defect_in_a_worker_keeps_its_traceback(tmp_path):
    def read(one):
        return [][0]

    with pytest.raises(RuntimeError, match=r"(?s)in the worker that wrote model-000.*return \[\]\[0\].*IndexError"):
        write(tmp_path / "out", read, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_is_killed_is_told_and_what_is_finished_is_kept(tmp_path):
    def read(one):
        if one.megatron_key == "output_layer.weight":
            os.kill(os.getpid(), signal.SIGKILL)
        return zeros(one)

    with pytest.raises(InterruptedConversion) as caught:
        write(tmp_path / "out", read, 2)
    assert "killed: most likely for memory" in caught.value.found and "fewer --workers" in caught.value.do
    assert "run the same command again" in caught.value.do
    assert finished(tmp_path / "out.partial")


def test_content_that_does_not_say_its_options_is_never_gone_on_with(tmp_path, monkeypatch):
    import dataclasses

    unknown = dataclasses.replace(content(zeros), options=None)
    kill = fork.Process(target=lambda: _write_and_die(unknown, tmp_path / "out"))
    kill.start()
    kill.join()
    first = {inode_and_time(path) for path in finished(tmp_path / "out.partial")}
    assert first
    with new_hf_directory(unknown, tmp_path / "out", "test", overwrite=False, shard_size_bytes=SHARD_BYTES):
        pass
    assert not first & {inode_and_time(path) for path in weight_files(tmp_path / "out")}


def _write_and_die(what, out):
    torch.set_num_threads(1)
    with new_hf_directory(what, out, "test", overwrite=False, shard_size_bytes=SHARD_BYTES):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_mean_is_written_by_workers_and_gone_on_with(sources, tmp_path, caplog):
    first = sources[to_megatron][0]
    second = write_hf(tmp_path / "second", MODEL, random_tensors(MODEL, seed=3))
    options = {"weights": [0.25, 0.75], "hf": True, "shard_size_bytes": SHARD_BYTES}
    average(tmp_path / "one", [first, second], **options)
    average(tmp_path / "two", [first, second], **options, num_workers=2)
    assert weight_contents(tmp_path / "two") == weight_contents(tmp_path / "one")
    killed_when(3, tmp_path / "out", lambda: average(tmp_path / "out", [first, second], **options))
    average(tmp_path / "out", [first, second], **options)
    assert "this one goes on" in caplog.text
    assert weight_contents(tmp_path / "out") == weight_contents(tmp_path / "one")
    killed_when(3, tmp_path / "other", lambda: average(tmp_path / "other", [first, second], **options))
    average(tmp_path / "other", [first, second], **{**options, "weights": [0.5, 0.5]})
    assert "left by another conversion (other options)" in caplog.text


def weight_contents(folder):
    return {path.name: path.read_bytes() for path in weight_files(folder)}
