"""The precision gate with stand-in trials: what they are, what passes, what is refused, when it is not held again."""

import copy
import json
import os
import threading

import pytest

from megatron_medx.config.files import read_run_yaml, write_run_yaml
from megatron_medx.config.run import PrecisionSection
from megatron_medx.errors import ConfigError, DataError
from megatron_medx.run_folder import events
from megatron_medx.run_folder.events import AGAIN, INTERRUPTED
from megatron_medx.training import launch as launching
from megatron_medx.training import precision_gate, slurm_task
from megatron_medx.training.gate_verdict import judge
from megatron_medx.training.launch import launch
from megatron_medx.training.local_ranks import Ending
from megatron_medx.training.precision_gate import BF16, FP8, gate_is_due, hold_gate, precisions, trial_config
from megatron_medx.training.prepare_run import prepare_folder
from megatron_medx.training.slurm_task import GATE_MARK, REFUSED_FILE

STEPS = 20
LOSSES = [3.0 - 0.05 * step for step in range(STEPS)]


def lines(losses):
    return [{"step": step, "loss": loss, "samples_crc": 7 * step} for step, loss in enumerate(losses, start=1)]


def fp8_losses(factor):
    """Those of bf16 but for the last two steps, a tenth of all."""
    return [*LOSSES[:-2], *(factor * loss for loss in LOSSES[-2:])]


@pytest.fixture
def gated(tiny_run):
    """A run in FP8 with a gate of 20 steps."""
    tiny_run.precision = PrecisionSection(fp8="tensorwise", bf16_last_layers=1, gate_steps=STEPS)
    tiny_run.training.steps = 100
    return tiny_run


def trials(**losses):
    """Runs a trial by writing what it would have, and keeps what it was asked for."""
    asked = []

    def run(trial):
        asked.append(trial)
        (trial.run_folder / "data").mkdir(parents=True)
        found = losses[trial.run_folder.name]
        if isinstance(found, Ending):
            return found
        (trial.run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(found)))
        return Ending(0)

    return run, asked


def held(config, **losses):
    return hold_gate(config, trials(**losses)[0])


def test_the_trials_are_the_run_in_two_precisions(gated):
    run, asked = trials(fp8=LOSSES, bf16=LOSSES)
    assert hold_gate(gated, run) == Ending(0)
    fp8, bf16 = asked
    assert [fp8.run_folder.name, bf16.run_folder.name] == [FP8, BF16], "FP8 first: it may be refused in seconds"
    assert (fp8.precision.fp8, fp8.precision.bf16_last_layers, fp8.precision.gate_steps) == ("tensorwise", 1, 0)
    assert bf16.precision == PrecisionSection(dtype="bf16")
    fp8.precision, fp8.run.folder = bf16.precision, bf16.run.folder
    assert fp8 == bf16, "they differ in nothing else"
    assert bf16.training.steps == 100, "the schedule of the run"
    assert bf16.megatron == {"save": None, "save_interval": None, "exit_interval": STEPS}
    assert not (bf16.run_folder / "data").exists() and gated.megatron == {}


def test_a_trial_neither_saves_nor_validates_nor_goes_back(gated):
    gated.checkpoint.export_every_steps, gated.checkpoint.async_save = 10, True
    gated.training.validate_every_steps, gated.training.on_bad_loss = 10, "rollback"
    gated.training.profile, gated.training.nvtx = "2:3", True
    gated.megatron = {"exit_interval": 3, "manual_gc": False}
    trial = trial_config(gated, FP8, gated.precision, "somewhere")
    assert not trial.checkpoint.export_every_steps and not trial.checkpoint.async_save
    assert not trial.training.validate_every_steps and trial.training.on_bad_loss == "skip"
    assert not trial.training.profile and not trial.training.nvtx, "a trial ends before most steps that are profiled"
    assert trial.megatron["exit_interval"] == STEPS and trial.megatron["manual_gc"] is False
    assert trial.checkpoint.start_from == "somewhere" and gated.checkpoint.start_from == ""
    path = gated.run_folder / "run.yaml"
    write_run_yaml(trial, path, {})
    assert read_run_yaml(path) == trial, "ranks read it back"


@pytest.mark.parametrize(("factor", "gap"), [(1.0, 0.0), (1.004, 0.004), (0.996, 0.004)])
def test_a_small_gap_passes_and_is_written_down(gated, factor, gap):
    assert held(gated, fp8=fp8_losses(factor), bf16=LOSSES) == Ending(0)
    record = json.loads((gated.run_folder / "precision_gate.json").read_text())
    assert record["passed"] and record["gap"] == pytest.approx(gap) and record["window_steps"] == 2
    assert record["precision"]["fp8"] == "tensorwise" and record["trials"][BF16]["loss"] == LOSSES
    assert record["trials"][BF16]["average"] == pytest.approx(sum(LOSSES[-2:]) / 2)
    assert (gated.run_folder / "precision_gate.png").read_bytes().startswith(b"\x89PNG")
    (told,) = events.read(gated.run_folder)
    assert (told["event"], told["passed"], told["steps"]) == ("precision_gate", True, STEPS)


@pytest.mark.parametrize("factor", [1.006, 0.994])
def test_a_gap_above_the_bound_is_refused_with_curve_and_ways_out(gated, factor):
    with pytest.raises(ConfigError) as refused:
        held(gated, fp8=fp8_losses(factor), bf16=LOSSES)
    error = refused.value
    assert "0.600% apart, averaged over the last 2 of 20 steps" in error.found
    assert "precision.gate_max_gap 0.500%" in error.needed
    assert "precision_gate.png" in error.do and "precision.fp8=none precision.gate_steps=0" in error.do
    assert (gated.run_folder / "precision_gate.png").exists()
    assert json.loads((gated.run_folder / "precision_gate.json").read_text())["passed"] is False
    assert events.read(gated.run_folder)[-1]["passed"] is False


def test_the_tower_is_blamed_where_it_computes_in_fp8(gated):
    gated.precision.fp8_vision = True
    with pytest.raises(ConfigError, match=r"try precision\.fp8_vision=false, precision\.fp8=blockwise"):
        held(gated, fp8=fp8_losses(2), bf16=LOSSES)


def test_a_loss_that_is_not_finite_is_refused(gated):
    with pytest.raises(ConfigError, match="no finite loss in fp8 at step 19"):
        held(gated, fp8=[*LOSSES[:-2], None, 1.0], bf16=LOSSES)
    assert events.read(gated.run_folder)[-1]["gap"] is None


def test_steps_without_a_trained_token_are_left_out():
    gaps = {name: lines([*LOSSES[:-2], None, loss]) for name, loss in ((FP8, 2.02), (BF16, 2.0))}
    assert judge(gaps, STEPS, 0.02)["gap"] == pytest.approx(0.01)
    none = {name: lines([*LOSSES[:-2], None, None]) for name in (FP8, BF16)}
    record = judge(none, STEPS, 0.02)
    assert not record["passed"] and "no trained token in steps 19 to 20" in record["why"]


def test_a_trial_that_ended_early_is_no_proof(gated, monkeypatch):
    monkeypatch.setattr(precision_gate, "METRICS_PATIENCE_S", 0.2)
    with pytest.raises(ConfigError, match=r"trial in bf16 made 19 of 20 steps"):
        held(gated, fp8=LOSSES, bf16=LOSSES[:-1])


def test_losses_that_arrive_late_from_another_node_are_waited_for(gated):
    run, _ = trials(fp8=LOSSES, bf16=LOSSES)

    def slowly(trial):
        ending, path = run(trial), trial.run_folder / "metrics.jsonl"
        whole = path.read_text()
        path.write_text(whole[:-9])
        threading.Timer(0.5, path.write_text, (whole,)).start()
        return ending

    assert hold_gate(gated, slowly) == Ending(0)


def test_other_rows_would_be_a_defect():
    other = [{**line, "samples_crc": 1} for line in lines(LOSSES)]
    with pytest.raises(AssertionError, match="other rows"):
        judge({FP8: lines(LOSSES), BF16: other}, STEPS, 0.1)


def test_any_two_precisions_can_be_compared(gated):
    sections = {"bf16": PrecisionSection(), "fp32": PrecisionSection(dtype="fp32")}
    run, asked = trials(bf16=LOSSES, fp32=LOSSES)
    hold_gate(gated, run, sections)
    assert [trial.precision.dtype for trial in asked] == ["bf16", "fp32"]


def test_a_gate_that_is_held_again_starts_from_nothing(gated):
    with pytest.raises(ConfigError):
        held(gated, fp8=fp8_losses(2), bf16=LOSSES)
    assert held(gated, fp8=Ending(1), bf16=LOSSES).code == 1
    assert not (gated.run_folder / "precision_gate.json").exists()
    assert not (gated.run_folder / "precision_gate.png").exists()
    assert not (gated.run_folder / "precision_gate" / "bf16").exists()


def test_when_the_gate_is_due(gated, save_at):
    launches = {"new": (False, False), "resume": (True, False), "auto": (False, True)}

    def due():
        return [name for name, flags in launches.items() if gate_is_due(gated, *flags)]

    assert due() == ["new", "auto"], "a resume without a checkpoint is refused by the launch"
    held(gated, fp8=LOSSES, bf16=LOSSES)
    assert due() == ["new", "auto"], "nothing says that it was for this run"
    prepare_folder(gated, False, ["medx"])
    assert due() == ["new"], "a launch that ended before its first save goes on"
    save_at(gated.run_folder / "checkpoints", 5)
    assert due() == ["new"]
    gated.precision.gate_steps = 50
    assert due() == ["new"], "how long it was is no matter"
    gated.precision.gate_steps = 0
    assert due() == []


@pytest.mark.parametrize("change", ["fp8", "bound", "absent"])
def test_a_run_cannot_pass_a_gate_in_its_middle(gated, save_at, change):
    held(gated, fp8=fp8_losses(1.004), bf16=LOSSES)
    prepare_folder(gated, False, ["medx"])
    save_at(gated.run_folder / "checkpoints", 5)
    match change:
        case "fp8":
            gated.precision.fp8 = "blockwise"
        case "bound":
            gated.precision.gate_max_gap = 0.003
        case "absent":
            (gated.run_folder / "precision_gate.json").unlink()
    for resume in (True, False):
        with pytest.raises(ConfigError, match=r"goes on from a checkpoint(.|\n)*set precision\.gate_steps=0"):
            gate_is_due(gated, resume, not resume)


@pytest.fixture
def ranks(monkeypatch):
    """Ranks of this machine that end as `endings` says; of a trial they leave losses."""
    started, endings = [], {}

    def run_ranks(folder, world_size, resume, received):
        config = read_run_yaml(folder / "run.yaml")
        started.append(folder.name)
        (folder / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines(endings.get("losses", {}).get(folder.name, LOSSES)))
        )
        assert (folder.name in (FP8, BF16)) == ("exit_interval" in config.megatron)
        return endings.get(folder.name, Ending(0))

    monkeypatch.setattr(launching, "run_ranks", run_ranks)
    return started, endings


def test_a_launch_holds_the_gate_first(gated, ranks):
    assert launch(gated) == 0
    assert ranks[0] == [FP8, BF16, "run"]
    config = read_run_yaml(gated.run_folder / "run.yaml")
    assert config.precision.fp8 == "tensorwise" and config.megatron == {}
    assert [event["event"] for event in events.read(gated.run_folder)] == ["precision_gate", "launched"]


def test_a_refused_run_is_not_prepared(gated, ranks):
    ranks[1]["losses"] = {FP8: fp8_losses(1.01)}
    with pytest.raises(ConfigError, match="precision gate"):
        launch(gated)
    assert not (gated.run_folder / "run.yaml").exists() and not (gated.run_folder / "lock.json").exists()
    ranks[1]["losses"] = {}
    assert launch(gated) == 0, "the folder is free for another try"


def test_a_passed_gate_is_not_held_again(gated, ranks, save_at):
    assert launch(gated) == 0
    assert launch(gated, auto_resume=True) == 0
    save_at(gated.run_folder / "checkpoints", 5)
    assert launch(gated, resume=True) == 0
    assert ranks[0] == [FP8, BF16, "run", "run", "run"]


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        (Ending(2, 0, 2, "no GPU"), 2, "failed: no GPU"),
        (Ending(1, 1, -9, "killed"), 1, "failed: killed"),
        (Ending(AGAIN), 1, "hung"),
        (Ending(INTERRUPTED), INTERRUPTED, "begins anew"),
    ],
)
def test_a_trial_that_does_not_end_well_ends_the_launch(gated, ranks, ending, code, said, capsys):
    ranks[1][FP8] = ending
    assert launch(gated) == code and ranks[0] == [FP8]
    shown = capsys.readouterr()
    assert said in shown.out + shown.err
    assert [event["event"] for event in events.read(gated.run_folder)] == ["failed"] * (code != INTERRUPTED)


@pytest.fixture
def tasks(monkeypatch):
    """Both tasks of an srun in this process, in threads of their own environment; their ranks are stand-ins."""
    place, became, tried = threading.local(), [], []

    class Environment(dict):
        def __getitem__(self, name):
            return str(place.rank) if name == "SLURM_PROCID" else super().__getitem__(name)

    slurm = {"SLURM_PROCID": "", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1"}
    monkeypatch.setattr(os, "environ", Environment(os.environ | slurm | {"MASTER_ADDR": "localhost"}))
    monkeypatch.setattr("megatron_medx.training.worker.run_rank", lambda *_: became.append(place.rank) or 0)

    def run_trial_rank(folder):
        tried.append((folder.name, place.rank))
        read_run_yaml(folder / "run.yaml")
        if place.rank == 0:
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(LOSSES)))
        return run_trial_rank.code

    run_trial_rank.code = 0
    monkeypatch.setattr(slurm_task, "_run_trial_rank", run_trial_rank)

    def start(configs):
        """Exit code, or error, of each task."""
        ends = [None, None]

        def be(rank):
            place.rank = rank
            try:
                ends[rank] = slurm_task.run_task(configs[rank], False, True)
            except Exception as error:
                ends[rank] = error

        threads = [threading.Thread(target=be, args=(rank,)) for rank in (1, 0)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return ends

    return start, became, tried, run_trial_rank


@pytest.fixture
def both(gated):
    gated.parallel.world_size = gated.parallel.tensor = 2
    return [gated, copy.deepcopy(gated)]


def test_all_tasks_of_srun_take_part_in_the_gate(both, tasks):
    start, became, tried, _ = tasks
    assert start(both) == [0, 0]
    assert sorted(tried) == [(name, rank) for name in (BF16, FP8) for rank in (0, 1)] and sorted(became) == [0, 1]
    assert all([name for name, rank in tried if rank == one] == [FP8, BF16] for one in (0, 1))
    became.clear()
    os.environ["SLURM_STEP_ID"] = "2"
    assert start(both) == [0, 0] and len(tried) == 4, "the same run goes on behind its gate"
    assert sorted(became) == [0, 1]
    assert (both[0].run_folder / "logs" / GATE_MARK).read_text() == "7.0.2 not_due"


def test_tasks_end_together_where_the_gate_refuses(both, tasks):
    start, became, tried, _ = tasks
    both[0].precision.gate_max_gap = both[1].precision.gate_max_gap = -1.0
    refused, other = start(both)
    assert isinstance(refused, ConfigError) and other == 2 and len(tried) == 4 and not became
    assert (both[0].run_folder / "logs" / REFUSED_FILE).read_text() == "7.0.1 refused"


def test_tasks_end_together_where_a_trial_cannot_be_prepared(both, tasks):
    start, became, tried, _ = tasks
    for config in both:
        config.data.path = str(config.run_folder)
    refused, other = start(both)
    assert isinstance(refused, DataError) and other == 2 and not tried and not became


@pytest.mark.parametrize(("code", "ends"), [(INTERRUPTED, INTERRUPTED), (1, 1), (AGAIN, 1)])
def test_tasks_end_as_their_trial_does(both, tasks, code, ends):
    start, became, tried, run = tasks
    run.code = code
    assert start(both) == [ends, code] and len(tried) == 2 and not became
    failed = [event for event in events.read(both[0].run_folder) if event["event"] == "failed"]
    assert len(failed) == (code != INTERRUPTED) and all(event["rank"] is None for event in failed)


def test_the_trials_of_both_tasks_are_in_the_same_order(gated):
    assert list(precisions(gated)) == [FP8, BF16]
