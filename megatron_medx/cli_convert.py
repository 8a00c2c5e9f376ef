"""`medx convert to-hf | to-megatron | average`: weights written; what can be asked of them is in `cli_weights.py`."""

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_medx.checkpoint.reports.report_file import json_report
from megatron_medx.cli_arguments import add_command, read_bytes, read_count
from megatron_medx.cli_weights import add_weights_commands
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
    to_hf.add_argument("--only", choices=("vision", "language", "merger"), help="write the tensors of one part alone")
    to_megatron.add_argument("--vision-from", type=Path, metavar="HF", help="SRC is a text-only Qwen3; tower from here")
    to_megatron.add_argument("--add-tokens", type=Path, metavar="FILE", help=_ADD_TOKENS)
    _add_average(directions)
    add_weights_commands(directions)


def _add_engine_options(command) -> None:
    """Options of every command that writes weights."""
    command.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    command.add_argument(
        "--shard-size", type=read_bytes, default="5GB", metavar="SIZE", help="largest file of weights, e.g. 50MB"
    )
    command.add_argument(
        "--workers", type=read_count, default=1, metavar="N", help="processes that write, a file each (default: 1)"
    )


def _engine_options(args: argparse.Namespace) -> dict[str, object]:
    """The same as arguments of a function that writes weights."""
    return {"overwrite": args.overwrite, "shard_size_bytes": args.shard_size, "num_workers": args.workers}


def _add_dry_run(command) -> None:
    command.add_argument(
        "--dry-run", action="store_true", help="show the plan: keys, files, bytes, time; write nothing"
    )
    command.add_argument(
        "--assume-rate", type=read_bytes, metavar="SIZE", help="with --dry-run: bytes a second, instead of measuring"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="with --dry-run: also write the whole plan there")


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


def _numbers(text: str) -> list[float]:
    """Read 0.5,0.3,0.2; argparse reports what is not a number."""
    return [float(word) for word in text.split(",")]


def _check_plan_options(args: argparse.Namespace) -> None:
    """Refuse options of the plan where none is asked for: they would be passed over."""
    given = [name for name, value in (("--json", args.json), ("--assume-rate", args.assume_rate)) if value is not None]
    if given and not args.dry_run:
        raise CheckpointError(
            f"{' and '.join(given)} without --dry-run",
            "a plan, which they are about",
            "add --dry-run, or leave them out",
        )


def _to_hf(args: argparse.Namespace) -> int:
    _check_plan_options(args)
    if args.dry_run:
        return _dry_run(args, args.checkpoint, direction="to-hf", dtype=args.dtype, only=args.only)
    from megatron_medx.checkpoint.convert import to_hf

    with _stoppable():
        to_hf(
            args.checkpoint,
            args.out,
            dtype=args.dtype,
            only=args.only,
            **_engine_options(args),
        )
    say(f"wrote {args.out}")
    return 0


def _to_megatron(args: argparse.Namespace) -> int:
    _check_plan_options(args)
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
            **_engine_options(args),
        )
    say(f"wrote {args.out}")
    return 0


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
            **_engine_options(args),
        )
    say(f"wrote {args.out}")
    return 0


def _dry_run(args: argparse.Namespace, source: Path, **options: object) -> int:
    from megatron_medx.checkpoint.planning.dry_run import dry_run
    from megatron_medx.checkpoint.planning.dry_run_lines import dry_run_lines

    with json_report(args.json) as write:
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
