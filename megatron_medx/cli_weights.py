"""`medx convert verify | inspect | diff | check`: what can be asked of weights, in either kind of file."""

import argparse
import json
from pathlib import Path

from megatron_medx.checkpoint.reports.report_file import json_report
from megatron_medx.cli_arguments import add_command, read_count
from megatron_medx.errors import CheckpointError
from megatron_medx.terminal import say


def add_weights_commands(commands) -> None:
    """Add what reads weights and writes none, under `medx convert`."""
    _add_verify(commands)
    _add_reports(commands)
    _add_check(commands)


def _add_verify(directions) -> None:
    summary = "compare two sets of weights of one network, each a Hugging Face directory or a checkpoint"
    verify = add_command(directions, "verify", _verify, summary)
    verify.add_argument("first", type=Path, metavar="A")
    verify.add_argument("second", type=Path, nargs="?", metavar="B")
    verify.add_argument("--hashes", type=Path, metavar="FILE", help="write the sha256 of every tensor of the first")
    run_on = verify.add_mutually_exclusive_group()
    run_on.add_argument("--data", type=Path, metavar="FOLDER", help="run both on the first rows of this data folder")
    run_on.add_argument("--tensors-only", action="store_true", help="run neither network")
    verify.add_argument("--rows", type=read_count, default=4, metavar="N", help="with --data: how many (default: 4)")


def _add_reports(directions) -> None:
    inspect = add_command(directions, "inspect", _inspect, "say what a directory or checkpoint is and holds")
    inspect.add_argument("weights", type=Path, metavar="X")
    inspect.add_argument("--norms", action="store_true", help="also read every tensor: norm, largest, NaN, infinities")
    summary = "say how far any two sets of weights lie apart; exit code 1 unless equal"
    diff = add_command(directions, "diff", _diff, summary)
    diff.add_argument("first", type=Path, metavar="A")
    diff.add_argument("second", type=Path, metavar="B")
    for command in (inspect, diff):
        command.add_argument("--all", action="store_true", help="every tensor on a line of its own")
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the whole report there")


def _add_check(directions) -> None:
    from megatron_medx.checkpoint.readers.tables import READERS

    summary = "say what servers and trainers would miss in a Hugging Face directory; headers only; exit code 1 if any"
    check = add_command(directions, "check", _check, summary)
    check.add_argument("hf", type=Path, metavar="HF")
    check.add_argument("--for", dest="reader", choices=(*READERS, "all"), default="all", help="default: all")


def _verify(args: argparse.Namespace) -> int:
    from megatron_medx.checkpoint.verify import hash_table, verify

    if args.second is None:
        if args.hashes is None:
            raise CheckpointError("one set of weights", "two to compare, or --hashes FILE", "name the second one")
        say(f"wrote the hashes of {hash_table(args.first, args.hashes)} tensors to {args.hashes}")
        return 0
    samples = [] if args.data is None else _samples(args.data, args.first, args.rows)
    result = verify(args.first, args.second, hashes=args.hashes, samples=samples, tensors_only=args.tensors_only)
    say(f"{result['num_tensors']} tensors compared bit for bit, {result['num_different']} differ")
    if first := result["first_difference"]:
        say(f"first difference: {first['name']} ({first['megatron_name']} in Megatron)")
    for tensor in result["worst"]:
        say(f"  {tensor['name']} ({tensor['megatron_name']}): largest difference {tensor['max_abs_diff']}")
    difference = result["logits_max_abs_diff"]
    say(f"largest difference of logits: {result['logits_note'] if difference is None else format(difference, '.2e')}")
    for side in ("first", "second"):
        if (loss := result.get(f"loss_{side}")) is not None:
            say(f"loss of the {side}: {loss:.6f} nats a token")
    say(json.dumps(result))
    return 0 if result["bit_equal"] else 1


def _samples(data: Path, weights: Path, number: int) -> list:
    """The first rows of a data folder, one sample each, through the processor that lies beside the weights."""
    import dataclasses

    from megatron_medx.checkpoint.running.logits import Sample
    from megatron_medx.checkpoint.weights import open_weights
    from megatron_medx.data.inspection.first_rows import first_rows

    opened = open_weights(weights)
    rows = first_rows(data, opened.model, opened.processor_folder, number)
    return [Sample(**{field.name: getattr(row, field.name) for field in dataclasses.fields(Sample)}) for row in rows]


def _inspect(args: argparse.Namespace) -> int:
    from megatron_medx.checkpoint.reports.inspection import inspect
    from megatron_medx.checkpoint.reports.inspection_lines import inspection_lines

    with json_report(args.json) as write:
        report = inspect(args.weights, with_norms=args.norms)
        for line in inspection_lines(report, every_tensor=args.all):
            say(line)
        write(report)
    return 0


def _diff(args: argparse.Namespace) -> int:
    from megatron_medx.checkpoint.reports.diff import diff
    from megatron_medx.checkpoint.reports.diff_lines import diff_lines

    with json_report(args.json) as write:
        report = diff(args.first, args.second)
        for line in diff_lines(report, every_tensor=args.all):
            say(line)
        write(report)
    return 0 if report["equal"] else 1


def _check(args: argparse.Namespace) -> int:
    from megatron_medx.checkpoint.readers.check import check
    from megatron_medx.checkpoint.readers.tables import READERS

    misses = check(args.hf, args.reader)
    for miss in misses:
        say(f"found:  {miss.found}\nneeded: {miss.needed}\ndo:     {miss.do}")
        for reader, what in miss.readers.items():
            say(f"        {reader}: {what}")
    names = ", ".join(READERS.values()) if args.reader == "all" else READERS[args.reader]
    say(f"{len(misses)} misses for {names}" if misses else f"nothing is missing for {names}")
    return 1 if misses else 0
