"""`medx convert ...`: Hugging Face <-> Megatron, and what can be asked of either."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_medx.cli_arguments import add_command, read_bytes
from megatron_medx.errors import CheckpointError
from megatron_medx.terminal import say


def add_convert_commands(commands) -> None:
    """Add `medx convert` with all that it can do."""
    convert = commands.add_parser("convert", help="Hugging Face <-> Megatron")
    directions = convert.add_subparsers(required=True, metavar="DIRECTION")
    to_hf = add_command(directions, "to-hf", _to_hf, "write a Hugging Face directory from a checkpoint")
    to_hf.add_argument("checkpoint", type=Path, metavar="CKPT")
    to_megatron = add_command(
        directions, "to-megatron", _to_megatron, "write a checkpoint from a Hugging Face directory"
    )
    to_megatron.add_argument("hf", type=Path, metavar="HF")
    for direction in (to_hf, to_megatron):
        direction.add_argument("out", type=Path, metavar="OUT")
        direction.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    to_hf.add_argument(
        "--shard-size", type=read_bytes, default="5GB", metavar="SIZE", help="largest safetensors file, e.g. 50MB"
    )
    to_hf.add_argument("--dtype", choices=("keep", "bf16", "fp32"), default="keep", help="of the written tensors")
    verify = add_command(directions, "verify", _verify, "compare a Hugging Face directory with a checkpoint")
    verify.add_argument("hf", type=Path, metavar="HF")
    verify.add_argument("checkpoint", type=Path, nargs="?", metavar="CKPT")
    verify.add_argument("--hashes", type=Path, metavar="FILE", help="write the sha256 of every tensor of the first")
    _add_reports(directions)
    to_hf.add_argument("--only", choices=("vision", "language", "merger"), help="write the tensors of one part alone")
    to_megatron.add_argument("--vision-from", type=Path, metavar="HF", help="HF is a text-only Qwen3; tower from here")
    _add_average(directions)


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
    average.add_argument("--shard-size", type=read_bytes, default="5GB", metavar="SIZE")
    average.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def _numbers(text: str) -> list[float]:
    """Read 0.5,0.3,0.2; argparse reports what is not a number."""
    return [float(word) for word in text.split(",")]


def _to_hf(args: argparse.Namespace) -> int:
    from megatron_medx.checkpoint.convert import to_hf

    to_hf(
        args.checkpoint,
        args.out,
        overwrite=args.overwrite,
        shard_size_bytes=args.shard_size,
        dtype=args.dtype,
        only=args.only,
    )
    say(f"wrote {args.out}")
    return 0


def _to_megatron(args: argparse.Namespace) -> int:
    from megatron_medx.checkpoint.convert import to_megatron

    to_megatron(args.hf, args.out, vision_from=args.vision_from, overwrite=args.overwrite)
    say(f"wrote {args.out}")
    return 0


def _average(args: argparse.Namespace) -> int:
    from megatron_medx.checkpoint.average import average

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
    )
    say(f"wrote {args.out}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from megatron_medx.checkpoint.verify import hash_table, verify

    if args.checkpoint is None:
        if args.hashes is None:
            raise CheckpointError("one set of weights", "two to compare, or --hashes FILE", "name the second one")
        say(f"wrote the hashes of {hash_table(args.hf, args.hashes)} tensors to {args.hashes}")
        return 0
    result = verify(args.hf, args.checkpoint, hashes=args.hashes)
    say(f"{result['num_tensors']} tensors compared bit for bit, {result['num_different']} differ")
    if first := result["first_difference"]:
        say(f"first difference: {first['name']} ({first['megatron_name']} in Megatron)")
    for tensor in result["worst"]:
        say(f"  {tensor['name']} ({tensor['megatron_name']}): largest difference {tensor['max_abs_diff']}")
    difference = result["logits_max_abs_diff"]
    say(f"largest difference of logits: {result['logits_note'] if difference is None else format(difference, '.2e')}")
    say(json.dumps(result))
    return 0 if result["bit_equal"] else 1


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
