"""Facts of this machine, and what disks must hold for a run."""

from megatron_medx.config.checkpoint_folders import RUN_FILE
from megatron_medx.config.files import write_run_yaml
from megatron_medx.config.memory import checkpoint_bytes
from megatron_medx.preflight import facts
from megatron_medx.preflight.place import place_of
from megatron_medx.recipes import get_recipe


def test_the_first_task_of_a_host_tells_of_the_host(tmp_path):
    found = facts.host_facts(place_of({}, "here"), tmp_path / "not" / "there")
    assert found["disks"]["run folder"]["path"] == str(tmp_path)
    assert set(found["disks"]) >= {"run folder", "/tmp"} and found["open_files"] > 0
    assert {"torch", "megatron-core", "megatron-medx", "CUDA of torch"} <= set(found["versions"])
    assert RUN_FILE not in found["versions"]


def test_other_tasks_tell_only_of_their_gpu(tmp_path):
    environ = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1"}
    assert "versions" not in facts.host_facts(place_of(environ, "here"), tmp_path)


def test_gpus_are_expected_where_a_driver_is_and_nobody_keeps_them_away(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "DRIVER_FILE", tmp_path / "nvidiactl")
    assert not facts.expects_gpus({})
    (tmp_path / "nvidiactl").write_text("")
    assert facts.expects_gpus({})
    assert not facts.expects_gpus({"CUDA_VISIBLE_DEVICES": ""})
    assert not facts.expects_gpus({"SLURM_JOB_ID": "1"})
    assert facts.expects_gpus({"SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "8"})


def test_a_new_run_needs_little_and_a_known_one_room_for_a_checkpoint(tmp_path):
    assert facts.disk_needs(tmp_path, 8)["run folder"] == facts.FOLDER_BYTES
    config = get_recipe("demo")
    write_run_yaml(config, tmp_path / RUN_FILE, {})
    needs = facts.disk_needs(tmp_path, 8)
    assert needs["run folder"] == checkpoint_bytes(config)
    assert needs["/dev/shm"] == 8 * facts.SHM_BYTES_TASK, "rows of threads do not go through shared memory"
    assert RUN_FILE in facts.versions(tmp_path)


def test_rows_of_workers_go_through_shared_memory(tmp_path):
    config = get_recipe("demo")
    config.data.num_workers, config.data.prefetch_rows = 3, 2
    config.data.seq_len_tokens, config.data.max_row_patches = 16384, 0
    write_run_yaml(config, tmp_path / RUN_FILE, {})
    vision = config.model.vision
    row = 16384 * vision.merge_size**2 * 3 * 2 * vision.patch_size**2 * 4
    assert facts.disk_needs(tmp_path, 2)["/dev/shm"] == 2 * (facts.SHM_BYTES_TASK + 3 * 2 * row)
