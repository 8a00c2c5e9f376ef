"""How often a run has failed without getting anywhere, and its last step, from its files."""

import pytest

from megatron_medx.run_folder.progress import failures_without_progress, last_step

NEW = {"event": "launched", "resumed_from": None}


def failed(step):
    return {"event": "failed", "step": step}


@pytest.mark.parametrize(
    ("events", "failures"),
    [
        ([], 0),
        ([NEW, {"event": "first_step", "step": 1}], 0),
        ([NEW, failed(None)], 1),
        ([NEW, failed(None), NEW, failed(None), NEW, failed(None)], 3),
        ([NEW, failed(40), NEW, {"event": "first_step", "step": 31}, failed(40)], 2),
        ([NEW, failed(40), NEW, failed(39), NEW, failed(41)], 1),
        ([NEW, failed(40), NEW, failed(40), NEW, {"event": "saved", "step": 50}], 0),
        ([NEW, {"event": "hang", "step": 41}, failed(40), NEW, {"event": "hang", "step": 41}], 2),
        ([NEW, {"event": "hang", "step": 41}, NEW, {"event": "first_step", "step": 41}, failed(41)], 1),
        ([NEW, failed(9), NEW, failed(9), {"event": "gave_up", "step": 9}, NEW, failed(9)], 1),
        ([NEW, failed(40), {"event": "rolled_back", "to_step": 20}, NEW, failed(30)], 1),
        ([NEW, failed(40), NEW, failed(40), NEW, {"event": "interrupted", "step": 40}], 2),
    ],
    ids=[
        "no event", "no failure", "at the start", "thrice at the start", "twice at one step", "a step further",
        "progress since", "a hang counts once", "the step that hung is new", "a person has looked", "rolled back",
        "a signal is no progress",
    ],
)  # fmt: skip
def test_failures_count_until_a_launch_makes_a_new_step(events, failures):
    assert failures_without_progress(events) == failures


def test_the_last_step_is_that_of_the_last_whole_line(tmp_path):
    assert last_step(tmp_path) is None
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "loss": {"1" * 200}.5}}\n' for step in range(1, 301)))
    assert last_step(tmp_path) == 300
    with open(path, "a") as file:
        file.write('{"step": 301, "lo')
    assert last_step(tmp_path) == 300
    path.write_text('{"st')
    assert last_step(tmp_path) is None
