"""The wait for a folder of a run that was submitted a moment ago, with a clock of the test's own."""

import pytest

from megatron_medx.status.waiting import APPEAR_S, await_run


class Clock:
    """Time that passes only in sleeps; what is to happen happens after some of them."""

    def __init__(self, after_s, happens):
        self.now_s, self.after_s, self.happens = 0.0, after_s, happens

    def sleep(self, time_s):
        self.now_s += time_s
        if self.now_s >= self.after_s:
            self.happens()

    def __call__(self):
        return self.now_s


@pytest.mark.parametrize("there", [None, [], ["lock.json"], ["lock.json", "lock.json.4711.partial"]])
def test_it_waits_until_a_job_begins_the_folder(tmp_path, there):
    said, folder = [], tmp_path / "run"
    if there is not None:
        folder.mkdir()
    for name in there or ():
        (folder / name).write_text("{}")

    def begin():
        folder.mkdir(exist_ok=True)
        (folder / "events.jsonl").write_text("{}\n")

    clock = Clock(5.0, begin)
    await_run(folder, said.append, clock.sleep, clock)
    assert 5.0 <= clock.now_s < 6.0
    assert said == [f"{folder} is not there yet; waiting up to 20 s for a job to start it"]


def test_it_gives_up(tmp_path):
    clock = Clock(1e9, lambda: None)
    await_run(tmp_path / "run", lambda line: None, clock.sleep, clock)
    assert APPEAR_S <= clock.now_s < APPEAR_S + 1


@pytest.mark.parametrize("name", ["run.yaml", "anything"])
def test_what_is_there_is_not_waited_for(tmp_path, name):
    (tmp_path / name).write_text("")
    for path in (tmp_path, tmp_path / name):
        await_run(path, pytest.fail, pytest.fail, lambda: 0.0)
