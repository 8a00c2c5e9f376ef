"""Slurm jobs of a build: what is submitted, and that the submitted jobs do the work."""

import os
from pathlib import Path

import dill
import pytest
from build_folders import asked, contents

from megatron_medx.data.builder import plan
from megatron_medx.data.builder.build import build_data
from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.builder.sources import lines
from megatron_medx.errors import DataError

SBATCH = """#!/bin/bash
for script; do :; done
cp "$script" "$SUBMITTED/job-$(ls "$SUBMITTED" | wc -l).sh"
echo "$@" >> "$SUBMITTED.arguments"
echo Submitted batch job $((70 + $(ls "$SUBMITTED" | wc -l)))
"""


@pytest.fixture
def submitted(tmp_path, monkeypatch) -> Path:
    """A folder in which a stand-in for sbatch leaves the scripts."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "submitted").mkdir()
    for name, text in (("sbatch", SBATCH), ("scontrol", "#!/bin/bash\necho node-1\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SUBMITTED", str(tmp_path / "submitted"))
    return tmp_path / "submitted"


SETTINGS = {"partition": "cpu", "time": "01:00:00", "account": "med", "cpus_per_task": "2"}


def test_submitted_jobs_do_the_work(demo, write_lines, build, submitted, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "CHUNK_ITEMS", 3)
    monkeypatch.setattr(lines, "CHUNK_ITEMS", 3)
    source = write_lines([asked(f"s{k}") for k in range(5)])
    whole, out = build(source, "whole"), tmp_path / "out"
    options = BuildOptions(processor=demo / "processor", report_picture=False, slurm=SETTINGS)
    assert build_data(source, out, options) is None
    arguments = (tmp_path / "submitted.arguments").read_text().splitlines()
    scripts = {path.name: path.read_text() for path in sorted(submitted.iterdir())}
    assert len(scripts) == 4  # tasks, their statistics, merge, its statistics
    first, merge = scripts["job-0.sh"], scripts["job-2.sh"]
    for line in ("--array=0-1", "--partition=cpu", "--time=01:00:00", "--account=med", "--cpus-per-task=2"):
        assert f"#SBATCH {line}" in first
    assert "--dependency=afterok:71" in arguments[2] and "#SBATCH --array=0-0" in merge
    assert not (out / "manifest.json").exists()
    assert f"launch_pickled_pipeline {out}/slurm/tasks/executor.pik" in first
    monkeypatch.setenv("SLURM_NODELIST", "node-1")
    for pickled, number in ((out / "slurm/tasks", 0), (out / "slurm/tasks", 1), (out / "slurm/merge", 0)):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number))
        with open(pickled / "executor.pik", "rb") as file:
            executor = dill.load(file)
        executor.requeue_signals = None  # else handlers of this process are replaced
        executor.run()  # as `launch_pickled_pipeline` does
    built = {name: content for name, content in contents(out).items() if not name.startswith("slurm/")}
    assert built == contents(whole)


def test_refuses_incomplete_settings(demo, write_lines, build):
    source = write_lines([asked("a")])
    with pytest.raises(DataError, match="without partition and time"):
        build(source, slurm={"account": "med"})
    with pytest.raises(DataError, match="cpus_per_task=two"):
        build(source, slurm=SETTINGS | {"cpus_per_task": "two"})


def test_needs_sbatch(write_lines, build, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="no command sbatch"):
        build(write_lines([asked("a")]), slurm=SETTINGS)
