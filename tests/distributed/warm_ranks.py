"""A process that has imported everything and forks the ranks of runs: no rank pays seconds for imports.

python warm_ranks.py SOCKET

Each connection to the Unix socket is one `medx` command: a line of JSON with `words`, `folder` (where it starts),
`out` and `err` (files of its screen) and `limit_s`. The answer is its exit code. It is the command itself, launcher and
all; only that `subprocess.Popen` of the launcher forks a rank where it would start a Python.
"""

import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import signal
import socketserver
import sys
import traceback
import types
from pathlib import Path

TIMED_OUT = 124
"""Exit code of a command that ran longer than it was given, as `timeout` has it."""


MODULES = (
    "matplotlib.pyplot",
    "torch.utils.tensorboard",
    "transformers.models.qwen2",
    "megatron.training",
    "megatron_medx.training.hooks",
    "megatron_medx.training.providers",
    "megatron_medx.training.step",
    "megatron_medx.training.survival_hooks",
    "megatron_medx.training.worker",
)
"""What a rank imports on its way to the first step and the curve."""


class ForkedRank(multiprocessing.get_context("fork").Process):
    """What the launcher sees of a rank: `pid` and `poll`."""

    def __init__(self, command: list[str], env: dict[str, str], process_group: int):
        assert command[1:3] == ["-m", "megatron_medx.training.worker"] and process_group == 0, command
        super().__init__(args=(command[3:], env))
        self.start()
        with contextlib.suppress(PermissionError, ProcessLookupError):  # the rank sets it, too: nobody comes too late
            os.setpgid(self.pid, 0)

    def run(self) -> None:
        """Be `python -m megatron_medx.training.worker WORDS`."""
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        words, env = self._args
        os.environ.clear()
        os.environ.update(env)
        sys.argv = ["worker.py", *words]
        from megatron_medx.training import worker

        sys.exit(worker.main(words))

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self.exitcode


class Command(socketserver.StreamRequestHandler):
    """One command, in a process of its own (ForkingMixIn)."""

    def handle(self) -> None:
        """Read the request, run it, answer with the exit code."""
        request = json.loads(self.rfile.readline())
        for path, stream in ((request["out"], sys.stdout), (request["err"], sys.stderr)):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(file, stream.fileno())
            os.close(file)
        os.chdir(request["folder"])
        self.wfile.write(f"{command(request['words'], request['limit_s'])}\n".encode())


def command(words: list[str], limit_s: int) -> int:
    """Exit code of `medx WORDS`, which has so many seconds; a defect's traceback goes to stderr."""
    from megatron_medx import cli
    from megatron_medx.training import local_ranks

    def out_of_time(*_) -> None:
        sys.stderr.write(f"not done after {limit_s} s\n")
        sys.exit(TIMED_OUT)

    local_ranks.subprocess = types.SimpleNamespace(Popen=ForkedRank)
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(limit_s)
    sys.argv = ["medx", *words]
    try:
        return cli.main(words)
    except SystemExit as end:
        return end.code
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        signal.alarm(0)
        sys.stdout.flush()
        sys.stderr.flush()


def import_everything() -> None:
    """All that a rank imports, and no thread, which a fork would lose."""
    from megatron_medx.parallel import cpu

    for name, value in cpu.ENVIRONMENT.items():
        os.environ.setdefault(name, value)

    for module in MODULES:
        importlib.import_module(module)
    import torch
    from megatron.training.argument_utils import ArgumentGroupFactory

    # The texts of Megatron's --help are parsed out of its source, three times a rank.
    ArgumentGroupFactory._get_field_docstrings = lambda *_: {}

    torch.set_num_threads(1)
    tasks = Path("/proc/self/task").iterdir()
    assert len(names := [(task / "comm").read_text().strip() for task in tasks]) == 1, f"threads: {names}"
    gc.collect()
    gc.freeze()  # else each rank goes through all that was imported whenever it collects garbage


def main() -> None:
    """Serve until killed."""
    import_everything()

    class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
        request_queue_size = 64
        max_children = 1000

    with Server(sys.argv[1], Command) as server:
        server.serve_forever()


if __name__ == "__main__":  # saving spawns processes that import this module
    main()
