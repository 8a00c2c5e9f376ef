"""The `medx` command: one small function per subcommand, each importing what it needs when it runs.

So a dry run or a wrong key answers in a fraction of a second, without torch. What a user can mend
(MedxError) is printed to stderr without a traceback and ends with code 2, like argparse's own errors.
"""

import argparse
import os
import sys
from pathlib import Path

from megatron_medx.cli_arguments import add_command, configured
from megatron_medx.cli_convert import add_convert_commands
from megatron_medx.cli_data import add_data_commands
from megatron_medx.cli_job import add_job_commands
from megatron_medx.cli_launch import add_launch_command
from megatron_medx.cli_look import add_look_commands
from megatron_medx.cli_plan import add_plan_command
from megatron_medx.errors import MedxError
from megatron_medx.terminal import complain, say

TRAIN_EPILOG = """examples:
  medx train demo
  medx train demo training.steps=5 parallel.tensor=2 parallel.pipeline=2 --nproc 4
  medx train pretrain_8b --nproc 256 --dry-run
  medx train runs/demo/run.yaml run.folder=runs/again
  medx train demo --resume
  medx train runs/demo/run.yaml --auto-resume"""


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return the exit code: 0 done, 1 a comparison failed, 2 the user can mend it.

    `train` also ends with the codes of run_folder/events.py.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # argparse ends the list of overrides at the first option; those after an option arrive here
    if rest and not ("overrides" in args and all("=" in word and not word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    try:
        return args.run(args)
    except MedxError as error:
        complain(str(error))
        return 2


def _train(args: argparse.Namespace) -> int:
    from megatron_medx.config.checks import check, check_files
    from megatron_medx.config.describe import describe
    from megatron_medx.config.overrides import apply_overrides
    from megatron_medx.training.interruption import block_signals

    task = os.environ.get("SLURM_PROCID", "0")  # under srun every task comes here; one speaks
    if "SLURM_PROCID" in os.environ and not args.dry_run:
        block_signals()  # this process becomes a rank
    is_told = args.auto_resume and "SLURM_PROCID" in os.environ  # by slurm/pretrain.sh, once
    speaks = task == "0" and not is_told
    try:
        former = _former_config if args.resume or args.auto_resume else lambda config: None
        config, grid = configured(args.config, args.overrides, args.nproc, former)
        if grid and speaks:
            say(f"the grid is {grid}")
        if args.nproc is not None:
            config = apply_overrides(config, [f"parallel.world_size={args.nproc}"])
        check(config)
        if not args.dry_run and task == "0":
            check_files(config, args.resume or args.auto_resume)
    except MedxError:
        if task == "0":
            raise
        return 2
    if speaks:
        for line in describe(config):
            say(line)
    if args.dry_run:
        say("all checks passed; nothing was started")
        return 0
    from megatron_medx.training.launch import launch

    return launch(config, args.resume, args.auto_resume)


def _former_config(config):
    """The configuration of the run that `--resume` goes on with; None where there is none yet."""
    from megatron_medx.run_folder.same_run import former_config
    from megatron_medx.training.prepare_run import resumed_folder

    return former_config(resumed_folder(config))


def _status(args: argparse.Namespace) -> int:
    import time

    from megatron_medx.checkpoint.reports.report_file import json_report
    from megatron_medx.status.lines import status_lines
    from megatron_medx.status.report import run_status
    from megatron_medx.status.waiting import await_run

    with json_report(args.json) as write:
        await_run(args.folder, complain)
        report = run_status(args.folder, time.time())
        for line in status_lines(report):
            say(line)
        write(report)
    return 0


def _recipes(args: argparse.Namespace) -> int:
    from megatron_medx.recipes import RECIPES

    width = max(map(len, RECIPES))
    for name, recipe in RECIPES.items():
        say(f"{name:<{width}}  {recipe.__doc__.splitlines()[0]}")
    return 0


def _generate(args: argparse.Namespace) -> int:
    from megatron_medx.generate import Assistant

    say(Assistant.load(args.hf).ask(args.image, args.question, args.max_new_tokens))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from megatron_medx.doctor import report

    for line in report():
        say(line)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="medx", description="Medical vision-language training on Megatron-Core.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    add_plan_command(commands)
    status = add_command(commands, "status", _status, "say how a run is doing, from the files in its folder")
    status.add_argument("folder", type=Path, metavar="RUN")
    status.add_argument("--json", type=Path, metavar="FILE", help="also write the report there")
    add_look_commands(commands)
    add_command(commands, "recipes", _recipes, "list the recipes")
    add_convert_commands(commands)
    generate = add_command(commands, "generate", _generate, "ask an exported model a question about images")
    generate.add_argument("hf", type=Path, metavar="HF_DIR")
    generate.add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE", help="DICOM or PNG; may be repeated"
    )
    generate.add_argument("--question", required=True, metavar="TEXT")
    generate.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    add_data_commands(commands)
    add_job_commands(commands)
    add_launch_command(commands)
    add_command(commands, "doctor", _doctor, "say what is installed and what will be used")
    return parser


def _add_train(commands) -> None:
    train = add_command(
        commands,
        "train",
        _train,
        "train a recipe, or repeat a run from its run.yaml",
        epilog=TRAIN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("config", metavar="RECIPE", help="a name that `medx recipes` lists, or the path of a run.yaml")
    train.add_argument("overrides", nargs="*", metavar="section.field=value")
    train.add_argument("--nproc", type=int, metavar="N", help="number of ranks, which chooses the shipped grid")
    going_on = train.add_mutually_exclusive_group()
    going_on.add_argument("--resume", action="store_true", help="go on from the run folder's last checkpoint")
    going_on.add_argument(
        "--auto-resume", action="store_true", help="the same, or begin in that folder where nothing is saved yet"
    )
    train.add_argument("--dry-run", action="store_true", help="check and describe the run, start nothing")


if __name__ == "__main__":
    sys.exit(main())
