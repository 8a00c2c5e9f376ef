"""`medx convert ...`: Hugging Face <-> Megatron, and what can be asked of either."""

import argparse
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_medx.cli_arguments import add_command, read_bytes
from megatron_medx.errors import CheckpointError
from megatron_medx.terminal import say

_ADD_TOKENS = (
    "special tokens to add, one a line. They get the ids after the tokenizer's last; rows that the matrices have there "
    "are taken first, then these grow to the next multiple of 128; a new row is the mean (float64) of the rows of the "
    "pieces that the tokenizer cut its text into, a row of padding that had to be made the mean of all tokens' rows"
)


def add_convert_commands(commands) -> None:
    """Add `medx convert` with all that it can do."""
    convert = commands.add_parser("convert", help="Hugging Face <-> Megatron")
    directions = convert.add_subparsers(required=True, metavar="DIRECTION")
    to_hf = add_command(directions, "to-hf", _to_hf, "write a Hugging Face directory from a checkpoint")
    to_hf.add_argument("checkpoint", type=Path, metavar="CKPT")
    summary = (
        "write a checkpoint, for any grid and without optimizer, from a Hugging Face directory or another checkpoint"
    )
    to_megatron = add_command(directions, "to-megatron", _to_megatron, summary)
    to_megatron.add_argument("source", type=Path, metavar="SRC")
    for direction in (to_hf, to_megatron):
        direction.add_argument("out", type=Path, metavar="OUT")
        _add_engine_options(direction)
        _add_dry_run(direction)
        direction.add_argument(
            "--dtype", choices=("keep", "bf16", "fp32"), default="keep", help="of the written tensors"
        )
    _add_verify(directions)
    _add_reports(directions)
    to_hf.add_argument("--only", choices=("vision", "language", "merger"), help="write the tensors of one part alone")
    to_megatron.add_argument("--vision-from", type=Path, metavar="HF", help="SRC is a text-only Qwen3; tower from here")
    to_megatron.add_argument("--add-tokens", type=Path, metavar="FILE", help=_ADD_TOKENS)
    _add_average(directions)
    _add_check(directions)


def _add_engine_options(command) -> None:
    """Options of every command that writes weights."""
    command.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    command.add_argument(
        "--shard-size", type=read_bytes, default="5GB", metavar="SIZE", help="largest file of weights, e.g. 50MB"
    )
    command.add_argument(
        "--workers", type=read_count, default=1, metavar="N", help="processes that write, a file each (default: 1)"
    )


def _add_dry_run(command) -> None:
    command.add_argument(
        "--dry-run", action="store_true", help="show the plan: keys, files, bytes, time; write nothing"
    )
    command.add_argument(
        "--assume-rate", type=read_bytes, metavar="SIZE", help="with --dry-run: bytes a second, instead of measuring"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="with --dry-run: also write the whole plan there")


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


def _add_average(directions) -> None:
    average = add_command(directions, "average", _average, "write the weighted mean of checkpoints of one network")
    average.add_argument("out", type=Path, metavar="OUT")
    average.add_argument("checkpoints", type=Path, nargs="+", metavar="CKPT")
    average.add_argument("--weights", type=_numbers, metavar="W,W,...", help="above 0, with sum 1 (default: equal)")
    average.add_argument("--base", type=Path, metavar="BASE", help="with --scale: write base + scale * (mean - base)")
    average.add_argument("--scale", type=float, metavar="S")
    average.add_argument("--hf", action="store_true", help="write a Hugging Face directory")
    average.add_argument("--dtype", choices=("keep", "bf16", "fp32"), default="keep")
    _add_engine_options(average)


def read_count(text: str) -> int:
    """Read a number of things."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"found {text}, needed a number from 1 on")
    return int(text)


def _add_check(directions) -> None:
    from megatron_medx.checkpoint.readers.tables import READERS

    summary = "say what servers and trainers would miss in a Hugging Face directory; headers only; exit code 1 if any"
    check = add_command(directions, "check", _check, summary)
    check.add_argument("hf", type=Path, metavar="HF")
    check.add_argument("--for", dest="reader", choices=(*READERS, "all"), default="all", help="default: all")


def _numbers(text: str) -> list[float]:
    """Read 0.5,0.3,0.2; argparse reports what is not a number."""
    return [float(word) for word in text.split(",")]


def _to_hf(args: argparse.Namespace) -> int:
    if args.dry_run:
        return _dry_run(args, args.checkpoint, direction="to-hf", dtype=args.dtype, only=args.only)
    from megatron_medx.checkpoint.convert import to_hf

    with _stoppable():
        to_hf(
            args.checkpoint,
            args.out,
            overwrite=args.overwrite,
            shard_size_bytes=args.shard_size,
            dtype=args.dtype,
            only=args.only,
            num_workers=args.workers,
        )
    say(f"wrote {args.out}")
    return 0


def _to_megatron(args: argparse.Namespace) -> int:
    if args.dry_run:
        return _dry_run(
            args,
            args.source,
            direction="to-megatron",
            vision_from=args.vision_from,
            dtype=args.dtype,
            add_tokens=args.add_tokens,
        )
    from megatron_medx.checkpoint.convert import to_megatron

    with _stoppable():
        to_megatron(
            args.source,
            args.out,
            vision_from=args.vision_from,
            dtype=args.dtype,
            add_tokens=args.add_tokens,
            overwrite=args.overwrite,
            shard_size_bytes=args.shard_size,
            num_workers=args.workers,
        )
    say(f"wrote {args.out}")
    return 0


def _dry_run(args: argparse.Namespace, source: Path, **options: object) -> int:
    from megatron_medx.checkpoint.dry_run import dry_run
    from megatron_medx.checkpoint.dry_run_lines import dry_run_lines

    with _report_file(args.json) as write:
        report = dry_run(
            source,
            args.out,
            overwrite=args.overwrite,
            shard_size_bytes=args.shard_size,
            bytes_per_s=args.assume_rate,
            **options,
        )
        for line in dry_run_lines(report):
            say(line)
        write(report)
    return 0


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM (a scheduler's) end the command without a traceback, after files were put in order."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _average(args: argparse.Namespace) -> int:
    from megatron_medx.checkpoint.average import average

    with _stoppable():
        average(
            args.out,
            args.checkpoints,
            weights=args.weights,
            base=args.base,
            scale=args.scale,
            dtype=args.dtype,
            hf=args.hf,
            overwrite=args.overwrite,
            shard_size_bytes=args.shard_size,
            num_workers=args.workers,
        )
    say(f"wrote {args.out}")
    return 0


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

    from megatron_medx.checkpoint.logits import Sample
    from megatron_medx.checkpoint.weights import open_weights
    from megatron_medx.data.inspection.first_rows import first_rows

    opened = open_weights(weights)
    rows = first_rows(data, opened.model, opened.processor_folder, number)
    return [Sample(**{field.name: getattr(row, field.name) for field in dataclasses.fields(Sample)}) for row in rows]


def _inspect(args: argparse.Namespace) -> int:
    from megatron_medx.checkpoint.inspection import inspect
    from megatron_medx.checkpoint.inspection_lines import inspection_lines

    with _report_file(args.json) as write:
        report = inspect(args.weights, with_norms=args.norms)
        for line in inspection_lines(report, every_tensor=args.all):
            say(line)
        write(report)
    return 0


def _diff(args: argparse.Namespace) -> int:
    from megatron_medx.checkpoint.diff import diff
    from megatron_medx.checkpoint.diff_lines import diff_lines

    with _report_file(args.json) as write:
        report = diff(args.first, args.second)
        for line in diff_lines(report, every_tensor=args.all):
            say(line)
        write(report)
    return 0 if report["equal"] else 1


@contextmanager
def _report_file(path: Path | None) -> Iterator[Callable[[dict], None]]:
    """A function that writes a report as JSON, if a file is wanted; whether it can be written is known before."""
    from megatron_medx.checkpoint.report_file import check_report_file, write_report_file

    if path is None:
        yield lambda report: None
        return
    check_report_file(path)
    yield lambda report: write_report_file(path, json.dumps(report, indent=2) + "\n")
