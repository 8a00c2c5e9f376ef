"""A checkpoint of any grid is resumed on any other, optimizer and all: the run goes on as if nothing had happened.

The writers are the runs of test_grids.py, which save after step 3; the readers do steps 4 and 5. Worst differences seen
(2026-11-22): losses 5.5e-7, gradient norms 1.9e-7 of themselves, Adam's first moments 1.1e-6 of a tensor's norm.
"""

import pytest
from agreement import LOSS_TOLERANCE, MOMENT_TOLERANCE, NORM_TOLERANCE, assert_same_losses, moment_differences
from grids import ONE
from medx_runs import stopped_at

PAIRS = {
    "dense": (
        (ONE, "tp2 cp2 pp2"),
        ("tp2 cp2 pp2", ONE),
        ("tp4 cp2", "dp4"),
        ("dp4", "pp2 vpp2"),
        ("cp2 pp2 vpp2 full", "tp4"),
        ("tp2 pp2 vpp2 dp2 selective", "pp3 first1 last1"),
        ("pp3 first1 last1", "cp4"),
    ),
    "experts": (
        (ONE, "tp2 cp2 dp2 ep8"),
        ("tp2 cp2 dp2 ep8", "pp2 vpp2 dp2 ep2"),
        ("tp2 pp2 dp2 ep4", ONE),
        ("dp4 ep4", "tp2 ep2"),
        ("tp2 cp2 pp2 ep2 full", "dp4 ep4"),
    ),
}
"""Scenario -> (grid that writes, grid that reads). Every axis grows and shrinks at least once."""

ALL = [(name, *pair) for name, pairs in PAIRS.items() for pair in pairs]


def resumed(runs, name, writer, reader):
    """The run that wrote, gone on from step 3 on the other grid."""
    title = f"{name} from {writer} to {reader}"

    def flow(runs):
        whole = runs.scenario(name, writer).result().ok()
        return runs.resume(stopped_at(3, whole, runs.folder / f"{title} stopped"), title, grid=reader)

    return runs.once(title, flow)


@pytest.fixture(scope="module", autouse=True)
def started(request, runs):
    """Start what the chosen tests of this module compare, all at once."""
    for item in request.session.items:
        if item.path == request.path:
            runs.scenario(item.callspec.params["name"])
            resumed(runs, **item.callspec.params)


@pytest.mark.parametrize(("name", "writer", "reader"), ALL)
def test_the_run_goes_on_as_if_undisturbed(name, writer, reader, runs):
    undisturbed = runs.scenario(name, ONE).result().ok()
    run = resumed(runs, name, writer, reader).result().ok()
    assert run.column("step") == [1, 2, 3, 4, 5]
    assert_same_losses({ONE: undisturbed.column("loss"), f"{writer}, {reader}": run.column("loss")}, LOSS_TOLERANCE)
    for key in ("lr", "tokens", "images"):
        assert run.column(key) == undisturbed.column(key), key
    assert run.column("grad_norm") == pytest.approx(undisturbed.column("grad_norm"), rel=NORM_TOLERANCE)
    differences = moment_differences(undisturbed, run, 5)
    worst = [f"{key}: {value:.1e}" for key, value in differences.items()][:8]
    assert max(differences.values()) < MOMENT_TOLERANCE, "\n".join(worst)
