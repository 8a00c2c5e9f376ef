"""The soak: which kills a seed draws, what is made of them, and that a run which loses something is found out.

The run here is a stand-in of two processes that writes what a run writes, without torch: steps of a few milliseconds.
"""

import json
import sys

import pytest

from benchmarks import soak, soak_kills
from benchmarks.soak_kills import FARTHEST, INSTANTS, VICTIMS, Kill, Launch, Soak, draw_kills, num_steps

STAND_IN = """
import json, os, pathlib, signal, subprocess, sys, time
folder, steps, fault = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
tracker, metrics = folder / "checkpoints" / "latest_checkpointed_iteration.txt", folder / "metrics.jsonl"
asked = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda *_: asked.append(1))
# Ranks start with them blocked: the slower one, which has no handlers yet, would die of a signal to both.
is_rank = "RANK" in os.environ
signal.pthread_sigmask(signal.SIG_UNBLOCK if is_rank else signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGTERM))
if not is_rank:
    words = [sys.executable, *sys.argv, "megatron_medx.training.worker"]
    ranks = [subprocess.Popen(words, env={**os.environ, "RANK": str(rank)}) for rank in range(2)]
    while all(rank.poll() is None for rank in ranks):
        time.sleep(0.002)
    code = ranks[1].poll()
    for rank in ranks:
        rank.kill()
    sys.exit(code if code in (0, 75) else 1)
while os.environ["RANK"] == "0":  # it does nothing but die
    time.sleep(0.01)

def write(path, text):
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)

def save(step):
    place = folder / "checkpoints" / f"iter_{step:07d}"
    place.mkdir(parents=True, exist_ok=True)
    (place / str(time.time())).touch()
    time.sleep(0.01)
    write(tracker, str(step))

folder.mkdir(parents=True, exist_ok=True)
step = int(tracker.read_text()) if tracker.exists() else 0
if fault == "older" and step > 4:
    step -= 4
with open(folder / "events.jsonl", "a") as file:
    file.write(json.dumps(dict(event="launched", resumed_from=step or None)) + "\\n")
if metrics.exists():
    lines = metrics.read_text().splitlines(keepends=True)
    write(metrics, "".join(line for line in lines if json.loads(line)["step"] <= step))
while step < steps:
    time.sleep(0.01)
    step += 1
    loss = 1 / step + (fault == "loss" and step == 9)
    with open(metrics, "a") as file:
        file.write(json.dumps(dict(step=step, loss=loss, grad_norm=1, lr=1, tokens=7, samples_crc=step)) + "\\n")
    if asked:
        if fault != "deaf":
            save(step)
        sys.exit(75)
    if step % 4 == 0:
        save(step)
"""


@pytest.fixture
def soaked(tmp_path, monkeypatch):
    """Function (kills, fault) -> launches, figures: a soak of the stand-in beside the stand-in left alone."""
    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN)
    monkeypatch.setattr(soak_kills, "SAVE_S", 0.01)
    monkeypatch.setattr(soak, "differing_weights", lambda *_: 0)

    def run(kills, fault="none", steps=40):
        folder, alone = tmp_path / "killed", tmp_path / "undisturbed"
        alone.mkdir()
        facts = {"grad_norm": 1, "lr": 1, "tokens": 7}
        lines = [facts | {"step": step, "loss": 1 / step, "samples_crc": step} for step in range(1, steps + 1)]
        (alone / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        command = [sys.executable, str(program), str(folder), str(steps), fault]
        launches = Soak(folder, command, kills, start_s=0.05).run(lambda line: None)
        return launches, soak.judge(folder, alone, launches, kills)

    return run


def kills(*words):
    """`"all ranks step 5"`: SIGKILL five steps after the resume."""
    split = [word.rsplit(" ", 2) for word in words]
    return [Kill(victim, instant, 1, int(ahead), 0.5) for victim, instant, ahead in split]


EVERY_KIND = kills(
    "one rank step 6", "SIGUSR1 step 3", "launcher and ranks save 0", "all ranks start 0", "SIGTERM save 0",
    "all ranks step 2",
)  # fmt: skip


def test_kills_of_every_kind_lose_nothing(soaked):
    launches, figures = soaked(EVERY_KIND)
    assert figures == {
        "resumes": 6,
        "steps_that_differ": 0,
        "weights_that_differ": 0,
        "steps_lost_beyond_the_last_save": 0,
        "steps_lost_to_signals": 0,
    }
    codes = [launch.code for launch in launches]
    assert codes[0] == 1 and codes[1] == 75 and codes[2] == -9 and codes[4] == 75 and codes[-1] == 0, codes
    assert launches[0].last_step >= 6 and launches[1].newest == 4 and launches[-1].last_step == 40
    assert all(launch.began_s < launch.struck_s <= launch.ended_s for launch in launches[:-1])


@pytest.mark.parametrize(
    ("fault", "figure"),
    [
        ("older", "steps_lost_beyond_the_last_save"),
        ("loss", "steps_that_differ"),
        ("deaf", "steps_lost_to_signals"),
    ],
)
def test_a_run_that_loses_something_is_found_out(soaked, fault, figure):
    _, figures = soaked(kills("one rank step 6", "SIGUSR1 step 5", "all ranks step 5", "all ranks step 3"), fault)
    assert {key for key, value in figures.items() if value and key != "resumes"} == {figure}


def test_a_run_that_ends_before_a_kill_is_no_soak(soaked):
    with pytest.raises(SystemExit, match="ended with code 0 before Kill"):
        soaked(kills("all ranks step 6"), steps=3)


def test_a_seed_draws_the_same_kills_and_each_kind_comes_up():
    drawn = draw_kills(200, 1)
    assert drawn == draw_kills(200, 1) != draw_kills(200, 2)
    assert {kill.victim for kill in drawn} == set(VICTIMS) and {kill.instant for kill in drawn} == set(INSTANTS)
    assert {kill.ahead for kill in drawn} == set(range(1, FARTHEST + 1)) and {kill.rank for kill in drawn} == {0, 1}


def test_the_run_is_the_demo_or_longer():
    assert num_steps(20) == num_steps(34) == 240 and num_steps(200) == 1400


def test_what_is_lost_beyond_a_save_by_hand():
    """Step 9 began when step 8 was saved; whether step 8's own save was over, step 8 does not tell."""

    def lost(last_step, newest, resumed_from):
        return soak.lost_beyond_the_save(Launch(0.0, 0, last_step=last_step), Launch(1.0, newest, resumed_from))

    assert [lost(9, newest, newest) for newest in (8, 7, 4)] == [0, 1, 4]
    assert [lost(8, 4, 4), lost(8, 4, None), lost(0, 0, None), lost(9, 4, None)] == [0, 0, 0, 4]
    assert [lost(6, 4, 0), lost(11, 11, 8)] == [4, 3]


@pytest.mark.parametrize("weights", [0, 3])
def test_a_missed_target_is_exit_code_1(capsys, monkeypatch, tmp_path, weights):
    launches = [
        Launch(0.0, 0, 0, 9.0, 9.5, 6, 1, [(0.1, 0), (8.0, 1)]),
        Launch(9.5, 4, 4, 0.0, 30.0, 240, 0, [(9.6, 6)]),
    ]
    monkeypatch.setattr(soak, "DATA", tmp_path)
    (tmp_path / "manifest.json").touch()
    monkeypatch.setattr(soak, "leave_alone", lambda folder, steps: (8.0, 60.0))
    monkeypatch.setattr(Soak, "run", lambda self, say: launches)
    monkeypatch.setattr(soak, "read_steps", lambda folder: [dict.fromkeys(soak.EXACT, 240)])
    monkeypatch.setattr(soak, "differing_weights", lambda *_: weights)
    out = tmp_path / "out"
    assert soak.main(["--kills", "1", "--out", str(out)]) == (1 if weights else 0)
    printed = capsys.readouterr().out
    summary = json.loads(printed.splitlines()[-1])
    assert summary["reached"] is (weights == 0) and summary["steps_done_again"] == 2 and summary["start_s"] == 8.0
    assert ("MISSED" in printed) is bool(weights) and "about 68 s" in printed
    assert (out / "soak.png").stat().st_size > 5000
    with pytest.raises(SystemExit, match="2"):
        soak.main(["--out", str(out)])
