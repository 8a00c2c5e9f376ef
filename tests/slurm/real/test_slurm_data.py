"""slurm/data.sh on a real Slurm: an array of jobs builds what one process does, and the job ends when it is whole."""

import json

import pytest

from megatron_medx.data.builder.build import build_data
from megatron_medx.data.builder.options import BuildOptions
from tests.distributed.small_data import write_small_data

pytestmark = pytest.mark.slurm

NUM_SAMPLES = 300
"""More than a chunk of 250, so that the array has two jobs."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with samples.jsonl and the processor of the small data."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "processor").symlink_to(write_small_data(folder.parent / f"{folder.name}_small") / "processor")
    lines = [
        {"id": f"s{k}", "messages": [{"role": "user", "content": f"{k}?"}, {"role": "assistant", "content": f"{k}."}]}
        for k in range(NUM_SAMPLES)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_an_array_builds_what_one_process_builds(submit, source, tmp_path):
    words = ("--cpus-per-task=1", "--mem-per-cpu=500M", "--export=ALL,MEDX_POLL_S=1", "slurm/data.sh")
    job = submit(*words, source, tmp_path / "by_jobs", "--slurm", "mem_per_cpu_gb=1,time=10")
    alone = build_data(source, tmp_path / "alone", BuildOptions())
    job.succeeded()
    assert alone.num_samples == NUM_SAMPLES
    assert job.said().splitlines()[-1] == f"{tmp_path / 'by_jobs'} is whole"
    for name in ("manifest.json", "index.parquet"):
        assert (tmp_path / "by_jobs" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    logs = [path.name for path in (tmp_path / "by_jobs" / "slurm" / "tasks" / "slurm_logs").glob("*.out")]
    assert {name.split("_")[1] for name in logs if "_" in name} >= {"0.out", "1.out"}, logs
