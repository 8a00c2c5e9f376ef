"""Several processes that work through the units of a conversion; one process does it without them.

Workers are forked, so that what reads the source need not be picklable, and start at once and share the memory of
torch and of the headers (a fresh interpreter would spend 3 s and 300 MB on that). Forking a process whose threads are
at work may deadlock its child. Therefore workers are forked before the progress line has its thread and before a
tensor is read ahead, and use one OpenMP thread, which never enters the pool that they inherited; torch's DataLoader
does the same.
"""

import ctypes
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch

from megatron_medx.checkpoint.writing.finished_units import InterruptedConversion
from megatron_medx.checkpoint.writing.progress import Advance
from megatron_medx.checkpoint.writing.work_units import Unit
from megatron_medx.errors import MedxError

Write = Callable[[Unit, Advance], None]
"""Writes one unit and reports its bytes as they go."""

_PR_SET_PDEATHSIG = 1
"""Of Linux' prctl: the signal that this process gets when its parent ends."""


@dataclass(frozen=True, slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    """Out go places in the list of units; in come bytes, None for a finished unit, or an exception."""


@contextmanager
def started(units: Sequence[Unit], write: Write, num_workers: int) -> Iterator[Callable[[Advance], None]]:
    """Give a function that writes every unit; workers stand ready already, and are gone when the block ends.

    Args:
        units: to write, in this order.
        write: writes one of them, in this process or in a worker.
        num_workers: 1 works in this process.
    Raises:
        InterruptedConversion: from the function: a worker was killed.
    """
    num_workers = min(num_workers, len(units))
    if num_workers <= 1:
        yield partial(_work_here, units, write)
        return
    pool: list[_Worker] = []
    try:
        for _ in range(num_workers):
            pool.append(_fork(units, write))
        yield partial(_deal, units, pool)
    finally:
        for worker in pool:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


def _work_here(units: Sequence[Unit], write: Write, advance: Advance) -> None:
    for unit in units:
        write(unit, advance)


def _fork(units: Sequence[Unit], write: Write) -> _Worker:
    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(units, write, theirs, os.getpid()), daemon=True)
    with warnings.catch_warnings():
        # Python warns of every fork beside threads; why these are harmless, the module says
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        process.start()
    theirs.close()  # so that our end reports when the worker, which alone has the other, is gone
    return _Worker(process, ours)


def _deal(units: Sequence[Unit], pool: Sequence[_Worker], advance: Advance) -> None:
    """Hand out units until all are finished."""
    waiting = iter(range(len(units)))
    busy = {worker.pipe: (worker, next(waiting)) for worker in pool}
    for pipe, (_, place) in busy.items():
        pipe.send(place)
    while busy:
        for pipe in connection.wait(list(busy)):
            worker, place = busy[pipe]
            try:
                message = pipe.recv()
            except (EOFError, ConnectionResetError):
                raise _lost(worker.process, units[place].name) from None
            if isinstance(message, BaseException):
                raise message
            if message is not None:
                advance(message)
            elif (place := next(waiting, None)) is None:
                del busy[pipe]
            else:
                busy[pipe] = (worker, place)
                pipe.send(place)


def _lost(process: BaseProcess, name: str) -> InterruptedConversion:
    process.join()
    return InterruptedConversion(
        f"a worker ended with code {process.exitcode} while it wrote {name}"
        + (" (killed: most likely for memory)" if process.exitcode == -signal.SIGKILL else ""),
        "workers that live until their units are finished; each needs memory for some of the largest tensors",
        "run the same command again: it goes on with the files that are finished; with fewer --workers if memory ran "
        "out",
    )


def _work(units: Sequence[Unit], write: Write, pipe: Connection, parent: int) -> None:
    """A worker's life: it ends when it is killed, by the parent or with it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the line above
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    while True:
        unit = units[pipe.recv()]
        try:
            write(unit, pipe.send)
        except (MedxError, OSError) as error:
            pipe.send(error)
        except Exception as error:  # a defect of ours: its traceback must not stay here
            pipe.send(RuntimeError(f"in the worker that wrote {unit.name}:\n{traceback.format_exc()}{error!r}"))
        else:
            pipe.send(None)
