"""`medx job ...`: what slurm/pretrain.sh asks before and after its job steps. Not meant to be typed.

The last line on stdout is for the script: `submit NODES RUN`, `go RANKS RUN`, `finished 0 RUN`, `done`, `again`,
`requeue` or `stop CODE`; what stands before it is for people.
"""

import argparse
import os
from pathlib import Path

from megatron_medx.cli_arguments import add_command, configured, read_count
from megatron_medx.errors import ConfigError
from megatron_medx.terminal import say


def add_job_commands(commands) -> None:
    """Add `medx job` with all that it can do."""
    job = commands.add_parser("job", help="what slurm/pretrain.sh asks").add_subparsers(required=True, metavar="WHAT")
    check = add_command(job, "check", _check, "on the login node: refuse what a job would refuse")
    check.add_argument("--nodes", type=read_count, metavar="N", help="of the job; default: what the run's ranks need")
    check.add_argument("--gpu-gb", type=read_count, metavar="N", help="memory of a GPU; default: it is not looked at")
    begin = add_command(job, "begin", _begin, "in the job: check everything, take the run folder")
    begin.add_argument("--tasks", type=read_count, required=True, metavar="N", help="tasks of the job, one a GPU")
    for command in (check, begin):
        command.add_argument("config", metavar="RECIPE", help="a name that `medx recipes` lists, or a run.yaml")
        command.add_argument("overrides", nargs="*", metavar="section.field=value")
        command.add_argument("--tasks-per-node", type=read_count, required=True, metavar="N", help="GPUs of a node")
        command.add_argument(
            "--accept-changes", action="store_true", help="go on with a run although its configuration differs"
        )
    preflight = add_command(job, "preflight", _preflight, "one task a GPU: look at every node before ranks start")
    preflight.add_argument("folder", type=Path, metavar="RUN")
    following = add_command(job, "next", _next, "after a job step: say what comes next")
    following.add_argument("folder", type=Path, metavar="RUN")
    following.add_argument("--of", choices=("launch", "preflight"), default="launch", help="the job step that ended")
    following.add_argument("--code", type=int, required=True, metavar="N", help="exit code of its srun")
    following.add_argument("--job", default="", metavar="TEXT", help="what scontrol --oneliner show job prints")


def _check(args: argparse.Namespace) -> int:
    from megatron_medx.config.problems import raise_problems
    from megatron_medx.job.begin import check_job
    from megatron_medx.planner.refusal import memory_problem

    config = _configuration(args, args.nodes and args.nodes * args.tasks_per_node)
    start, nodes = check_job(config, args.nodes, args.tasks_per_node, args.accept_changes)
    if args.gpu_gb and not start.is_finished:
        problem = memory_problem(start.config, args.gpu_gb * 1e9)
        raise_problems([problem] if problem else [])
    _describe(start)
    say(f"submit {nodes} {start.config.run_folder}")
    return 0


def _begin(args: argparse.Namespace) -> int:
    from megatron_medx.job.begin import begin_job

    start = begin_job(_configuration(args, args.tasks), args.tasks, args.tasks_per_node, args.accept_changes)
    _describe(start)
    word, ranks = ("finished", 0) if start.is_finished else ("go", start.config.parallel.world_size)
    say(f"{word} {ranks} {start.config.run_folder}")
    return 0


def _preflight(args: argparse.Namespace) -> int:
    from megatron_medx.preflight.run import preflight

    return preflight(args.folder)


def _next(args: argparse.Namespace) -> int:
    from megatron_medx.job.following import follow

    verdict = follow(args.folder, args.of, args.code, args.job, int(os.environ.get("SLURM_RESTART_COUNT", 0)))
    say(verdict.why)
    say(f"stop {verdict.code}" if verdict.word == "stop" else verdict.word)
    return 0


def _configuration(args: argparse.Namespace, ranks: int | None):
    """The run on the grid that it has, or that its recipe ships for so many ranks, which is said."""
    from megatron_medx.job.begin import in_its_folder
    from megatron_medx.run_folder.same_run import former_config

    def former(config):
        try:
            return former_config(in_its_folder(config).run_folder)
        except ConfigError:  # `begin_job` refuses it, and writes that into the run's events
            return None

    config, grid = configured(args.config, args.overrides, ranks, former)
    if grid:
        say(f"the grid is {grid}")
    return config


def _describe(start) -> None:
    from megatron_medx.config.describe import describe

    for line in (*([] if start.is_finished else describe(start.config)), *start.notes):
        say(line)
