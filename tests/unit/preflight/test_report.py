"""What rank 0 says: warnings on one line, what stops in three parts and last, of very many the first ones."""

from megatron_medx.preflight.finding import Finding, shortened
from megatron_medx.preflight.run import MOST_SAID, _report


def test_warnings_come_first_and_what_stops_last(capsys):
    _report([Finding("bad", "good", "mend it"), Finding("odd", "even", "look at it", stops=False)])
    assert (
        capsys.readouterr().err
        == "warning: odd; needed: even; look at it\nfound:  bad\nneeded: good\ndo:     mend it\n"
    )


def test_very_many_are_counted(capsys):
    _report([Finding(f"bad {number}", "good", "mend it") for number in range(MOST_SAID + 5)])
    err = capsys.readouterr().err
    assert (
        f"bad {MOST_SAID - 1}\n" in err and f"bad {MOST_SAID}\n" not in err and "and 5 more, which events.jsonl" in err
    )


def test_names_are_shortened():
    assert shortened(["a", "b", "a"]) == "a, b"
    assert shortened(map(str, range(10)), most=3) == "0, 1, 2 and 7 more"
