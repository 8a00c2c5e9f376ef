"""`medx plan`: memory, FLOPs, traffic, time and cost of a run before GPUs are asked for, and better grids."""

import argparse
from pathlib import Path

from megatron_medx.cli_arguments import add_command, configured, read_count, read_pairs
from megatron_medx.errors import ConfigError
from megatron_medx.terminal import say

EPILOG = """examples:
  medx plan pretrain_8b --gpus 64
  medx plan pretrain_8b parallel.tensor=2 precision.fp8=tensorwise --picture timeline.png
  medx plan pretrain_235b_a22b --gpus 512 --json
  medx plan pretrain_8b --assume image_share=0,sample_tokens=4096"""

STDOUT = "-"


def add_plan_command(commands) -> None:
    """Add `medx plan`."""
    plan = add_command(
        commands,
        "plan",
        _plan,
        "say what a run needs, takes and costs, and which grid would be better; nothing is started",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.add_argument("config", metavar="RECIPE", help="a name that `medx recipes` lists, or the path of a run.yaml")
    plan.add_argument("overrides", nargs="*", metavar="section.field=value")
    plan.add_argument("--gpus", type=read_count, metavar="N", help="the recipe's grid for N GPUs, else the best found")
    plan.add_argument(
        "--json", nargs="?", const=STDOUT, metavar="FILE", help="write the plan there, or in place of the table"
    )
    plan.add_argument("--picture", type=Path, metavar="FILE", help="also draw the pipeline's timeline, PNG")
    plan.add_argument(
        "--assume",
        type=read_pairs,
        metavar="NAME=VALUE,...",
        help="what rows hold, instead of data: image_share, image_side_px, sample_tokens",
    )


def _plan(args: argparse.Namespace) -> int:
    import json

    from megatron_medx.checkpoint.reports.report_file import check_report_file, json_report
    from megatron_medx.planner.lines import report_lines
    from megatron_medx.planner.plan import make_plan

    if args.json and "=" in args.json:
        raise ConfigError(f"--json {args.json}", "a file, or no word", f"write {args.json} before --json")
    if args.picture:
        check_report_file(args.picture)
    to_stdout = args.json == STDOUT
    with json_report(Path(args.json) if args.json and not to_stdout else None) as write:
        config, grid_from = _asked(args)
        plan = make_plan(config, grid_from, _assumption(args.assume))
        write(plan.report)
    for line in [json.dumps(plan.report, indent=2)] if to_stdout else report_lines(plan.report):
        say(line)
    if args.picture:
        from megatron_medx.planner.picture import draw_timeline

        idle = f"{plan.prediction.timeline.idle_share:.1%} of the stages' time is waiting"
        draw_timeline(plan.prediction, f"{plan.config.run.recipe}, {plan.report['gpus']:,} GPUs: {idle}", args.picture)
    return 0


def _asked(args: argparse.Namespace):
    """The run that was asked for, as `medx train` would start it, and who chose its grid.

    Nobody for a number of GPUs that the recipe ships no grid for: the search does.
    """
    from megatron_medx.config.overrides import apply_overrides
    from megatron_medx.config.run import ParallelSection
    from megatron_medx.recipes import GRIDS_OF

    config, shipped = configured(args.config, args.overrides, args.gpus)
    if shipped and args.gpus not in GRIDS_OF[args.config]:
        config.parallel = ParallelSection(world_size=args.gpus)
        return config, ""
    is_stated = any(word.strip().startswith("parallel.") for word in args.overrides)
    gpus = [] if args.gpus is None else [f"parallel.world_size={args.gpus}"]
    return apply_overrides(config, gpus), "as asked" if is_stated else "the recipe's"


def _assumption(given: dict[str, str] | None):
    """What rows are to be taken to hold, None without `--assume`."""
    from dataclasses import fields

    from megatron_medx.planner.workload import Assumption

    if given is None:
        return None
    kinds = {field.name: type(field.default) for field in fields(Assumption)}
    try:
        values = {name: kinds[name](value) for name, value in given.items()}
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"--assume {','.join(f'{name}={value}' for name, value in given.items())}",
            f"numbers for any of {', '.join(kinds)}",
            "for instance --assume image_share=0.3,sample_tokens=4096",
        ) from error
    assumption = Assumption(**values)
    if not 0 <= assumption.image_share <= 1 or min(assumption.image_side_px, assumption.sample_tokens) < 1:
        raise ConfigError(
            f"--assume with {assumption}",
            "an image_share from 0 to 1, the others from 1 on",
            "correct it, for instance --assume image_share=0.3",
        )
    return assumption
