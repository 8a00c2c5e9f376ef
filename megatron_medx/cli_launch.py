"""`medx launch`: a recipe submitted to a cluster from a workstation."""

import argparse
import re
from pathlib import Path

from megatron_medx.cli_arguments import add_command, configured, is_path, read_count
from megatron_medx.errors import ConfigError

LAUNCH_EPILOG = """examples:
  medx launch demo --cluster local --dry-run
  medx launch pretrain_8b data.path=/data/mixture --cluster ours --nodes 8 --time 24:00:00
  medx launch demo --cluster ours --sweep optimizer.lr=1e-3,3e-4 --sweep run.seed=1,2 --detach"""


def add_launch_command(commands) -> None:
    """Add `medx launch`."""
    launch = add_command(
        commands,
        "launch",
        _launch,
        "submit a recipe to a cluster, by ssh or on this machine, and say how it ended",
        epilog=LAUNCH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    launch.add_argument("recipe", metavar="RECIPE", help="a name that `medx recipes` lists")
    launch.add_argument("overrides", nargs="*", metavar="section.field=value")
    launch.add_argument("--cluster", required=True, metavar="NAME", help="of slurm/clusters/NAME.env")
    launch.add_argument("--nodes", type=read_count, metavar="N", help="of the job; default: what the run's ranks need")
    launch.add_argument("--time", type=_read_time, metavar="HH:MM:SS", help="limit of the job; default: the cluster's")
    launch.add_argument(
        "--sweep", action="append", default=[], metavar="KEY=A,B,C", help="a run for each value; repeated: each pair"
    )
    launch.add_argument("--accept-changes", action="store_true", help="go on with a run whose configuration differs")
    launch.add_argument("--detach", action="store_true", help="end when it is submitted, without following it")
    launch.add_argument("--dry-run", action="store_true", help="check and show what would be done, submit nothing")


def _read_time(text: str) -> str:
    if not re.fullmatch(r"(\d+-)?\d+:\d\d:\d\d", text):
        raise argparse.ArgumentTypeError(f"found {text}, needed HH:MM:SS or D-HH:MM:SS")
    return text


def _launch(args: argparse.Namespace) -> int:
    from megatron_medx.config.checks import check
    from megatron_medx.launch.launch import Order, Wish, launch
    from megatron_medx.launch.sweep import points

    if is_path(args.recipe):
        raise ConfigError(
            f"{args.recipe}, a file of this machine", "a recipe, which is in the commit", "name one of `medx recipes`"
        )
    orders = []
    for point in points(args.recipe, args.overrides, args.sweep):
        config, _ = configured(args.recipe, point.overrides, None)
        check(config)
        accept = ("--accept-changes",) if args.accept_changes else ()
        orders.append(Order((args.recipe, *point.overrides, *accept), config))
    return launch(orders, Wish(args.cluster, args.nodes, args.time, args.dry_run, args.detach), Path.cwd())
