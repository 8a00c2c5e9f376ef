"""`medx watch` and `medx report`: runs seen from their files, live in a terminal and as a page."""

import argparse
from pathlib import Path

from megatron_medx.cli_arguments import add_command
from megatron_medx.terminal import say

WATCH_EPILOG = """examples:
  medx watch runs/demo
  medx watch runs/demo runs/demo-1             # curves laid over each other
  medx watch runs/demo --once >> daily.log     # one picture, without control characters

keys: q quits; d or ? shows what each number is; c goes to the next curve; z shows the last tenth of the steps."""


def add_look_commands(commands) -> None:
    """Add `medx watch` and `medx report`."""
    watch = add_command(
        commands,
        "watch",
        _watch,
        "show runs live in the terminal, from the files in their folders",
        epilog=WATCH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    watch.add_argument("folders", nargs="+", type=Path, metavar="RUN")
    watch.add_argument(
        "--once", action="store_true", help="print it once as plain text, as without a terminal, and end"
    )
    watch.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="between two looks (default 2)")
    report = add_command(commands, "report", _report, "write a run as one HTML page that opens without network")
    report.add_argument("folder", type=Path, metavar="RUN")
    report.add_argument("--against", type=Path, metavar="PARENT", help="a run that curves and settings stand beside")
    report.add_argument("--out", type=Path, metavar="FILE", help="the page (default RUN/report.html)")


def _watch(args: argparse.Namespace) -> int:
    from megatron_medx.watch.screen import watch

    return watch(args.folders, once=args.once, every_s=args.every)


def _report(args: argparse.Namespace) -> int:
    from megatron_medx.report.write import write_report

    page = write_report(args.folder, args.against, args.out)
    say(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
    return 0
