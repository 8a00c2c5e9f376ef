"""`medx launch` as it is typed: what is refused before anything is looked for on a cluster."""

import pytest

from megatron_medx import cli


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense", "--cluster", "local"], "unknown recipe nonsense"),
        (["runs/demo/run.yaml", "--cluster", "local"], "found:  runs/demo/run.yaml, a file of this machine"),
        (["demo", "paralel.tensor=2", "--cluster", "local"], "did you mean parallel.tensor"),
        (["demo", "--sweep", "optimizer.lr=1e-3,fast", "--cluster", "local"], "fast"),
        (["demo", "--sweep", "optimizer.lr", "--cluster", "local"], "needed: section.field=a,b,c"),
        (["demo", "run.folder=exp/a", "--cluster", "local"], "do:     write run.folder=runs/a"),
        (["demo", "--cluster", "moon"], "no slurm/clusters/moon.env"),
    ],
)
def test_what_a_workstation_can_refuse_is_refused_there(words, message, capsys, request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)
    assert cli.main(["launch", *words]) == 2
    complained = capsys.readouterr().err
    assert message in complained
    assert [f"\n{complained}".count(f"\n{part}") for part in ("found:", "needed:", "do:")] == [1, 1, 1]


@pytest.mark.parametrize(
    "words", [["demo"], ["demo", "--cluster", "local", "--time", "12"], ["demo", "--cluster", "local", "--nodes", "0"]]
)
def test_what_is_no_command_ends_as_argparse_does(words):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["launch", *words])


@pytest.mark.parametrize("time", ["0:10:00", "12:00:00", "2-00:00:00"])
def test_times_are_those_of_sbatch(time):
    assert cli._parser().parse_args(["launch", "demo", "--cluster", "local", "--time", time]).time == time


def test_outside_of_a_checkout_it_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["launch", "demo", "--cluster", "local"]) == 2
    assert "lies in no checkout of Megatron-MedX" in capsys.readouterr().err
