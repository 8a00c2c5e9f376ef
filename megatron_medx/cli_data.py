"""`medx data ...`: sources become data folders, and data folders are looked at."""

import argparse
import json
from pathlib import Path

from megatron_medx.cli_arguments import add_command, configuration, read_bytes, read_pairs
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import ConfigError
from megatron_medx.terminal import say


def add_data_commands(commands) -> None:
    """Add `medx data` with all that it can do."""
    data = commands.add_parser("data", help="data folders").add_subparsers(required=True, metavar="WHAT")
    demo = add_command(data, "demo", _demo_data, "real images from pip packages, with the demo's tokenizer")
    demo.add_argument("out", type=Path, metavar="OUT")
    _add_build(data)
    _add_views(data)
    add_command(data, "schema", _schema, "print the JSON Schema of a line of samples.jsonl")


def _add_build(data) -> None:
    build = add_command(data, "build", _build_data, "make a data folder, which training reads, of a source")
    build.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="folder with samples.jsonl, .jsonl, .json (LLaVA), parquet, saved Hugging Face dataset, DICOM folder",
    )
    build.add_argument("out", type=Path, metavar="OUT")
    build.add_argument("--processor", type=Path, metavar="DIR", help="with the tokenizer; default SOURCE/processor")
    build.add_argument("--workers", type=int, default=1, metavar="N", help="processes; the output is the same for any")
    build.add_argument(
        "--splits", type=read_pairs, default={}, metavar="NAME=SHARE,...", help="by patient: train=0.98,val=0.02"
    )
    build.add_argument("--max-slices", type=int, default=64, metavar="N", help="images of a volume or slide at most")
    build.add_argument("--shard-size", type=read_bytes, default="500MB", metavar="SIZE", help="of a tar file, e.g. 1GB")
    build.add_argument("--allow-burned-in", action="store_true", help="take images with BurnedInAnnotation = YES")
    build.add_argument("--patient-key", type=Path, metavar="FILE", help="secret that keys the pseudonyms of patients")
    build.add_argument("--overwrite", action="store_true", help="replace OUT if an earlier build wrote it")
    build.add_argument(
        "--slurm", type=read_pairs, default={}, metavar="NAME=VALUE,...", help="as jobs: partition=cpu,time=04:00:00"
    )


def _add_views(data) -> None:
    show = add_command(data, "show", _show_data, "write a page of rows as the model sees them")
    bench = add_command(data, "bench", _bench_data, "say what the loader feeds, beside what a run needs")
    for command in (show, bench):
        command.add_argument("data", metavar="DATA", help="data folder, or YAML file of a mixture")
        command.add_argument("overrides", nargs="*", metavar="section.field=value")
        command.add_argument("--recipe", default="demo", metavar="RECIPE", help="of the run; default %(default)s")
    show.add_argument("--pack", default="0", metavar="J", help="row of the run, or A:B for rows A to B - 1")
    show.add_argument("--out", type=Path, default=Path("pack.html"), metavar="FILE", help="default %(default)s")
    bench.add_argument("--seconds", type=float, default=10.0, metavar="S", help="measured for each number of workers")
    bench.add_argument("--workers", type=_numbers, default=[0], metavar="N,N,...", help="0 is a thread of the rank")
    bench.add_argument("--peak-tflops", type=float, default=989.0, metavar="N", help="of a device; default H100, bf16")
    bench.add_argument("--mfu", type=float, default=0.4, metavar="SHARE", help="that the run is taken to reach")


def _numbers(text: str) -> list[int]:
    """Read 0,2,4."""
    if not all(word.isdecimal() for word in text.split(",")):
        raise argparse.ArgumentTypeError(f"found {text}, needed numbers such as 0,2,4")
    return [int(word) for word in text.split(",")]


def _demo_data(args: argparse.Namespace) -> int:
    from megatron_medx.data.demo.build import build_demo

    build_demo(args.out)
    say(f"wrote {args.out}")
    return 0


def _build_data(args: argparse.Namespace) -> int:
    from megatron_medx.data.builder.build import build_data
    from megatron_medx.data.builder.options import BuildOptions
    from megatron_medx.data.builder.report import summary

    options = BuildOptions(
        processor=args.processor,
        workers=args.workers,
        splits={name: _share(share) for name, share in args.splits.items()},
        max_slices=args.max_slices,
        shard_size_bytes=args.shard_size,
        allow_burned_in=args.allow_burned_in,
        patient_key_file=args.patient_key,
        overwrite=args.overwrite,
        slurm=args.slurm,
    )
    if build_data(args.source, args.out, options) is None:
        say(f"submitted; {args.out}/slurm has the logs. If a job fails, give the same command again")
        return 0
    for name in options.split_names:
        for line in summary(args.out / name):
            say(line)
    return 0


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"--splits with a share of {text}", "a number", "write for instance train=0.98,val=0.02"
        ) from None


def _run_config(args: argparse.Namespace) -> RunConfig:
    """The run that DATA is looked at for."""
    from megatron_medx.config.checks import check
    from megatron_medx.config.overrides import apply_overrides

    config = apply_overrides(configuration(args.recipe), [f"data.path={args.data}", *args.overrides])
    check(config)
    return config


def _show_data(args: argparse.Namespace) -> int:
    from megatron_medx.data.inspection.show import parse_packs, write_page

    write_page(_run_config(args), parse_packs(args.pack), args.out)
    say(f"wrote {args.out}")
    return 0


def _bench_data(args: argparse.Namespace) -> int:
    from megatron_medx.data.inspection.bench import bench_data, bench_lines

    result = bench_data(
        _run_config(args),
        workers=args.workers,
        seconds_s=args.seconds,
        peak_tflops=args.peak_tflops,
        mfu=args.mfu,
    )
    for line in bench_lines(result):
        say(line)
    say(json.dumps(result))
    return 0


def _schema(args: argparse.Namespace) -> int:
    from megatron_medx.data.samples import SCHEMA_FILE

    say(SCHEMA_FILE.read_text().rstrip())
    return 0
