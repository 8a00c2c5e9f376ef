"""Rows ahead of the step: made by a thread or by worker processes, handed over in order.

Comes in: a dataset and the endless indices of one rank's rows. Goes out: their Microbatches in exactly that order,
pinned where asked, and how long the step had to wait for them. Nothing here knows what a row holds, who else trains,
or how rows are dealt; nothing is kept that a resume would need.
"""

import dataclasses
import os
import queue
import threading
import time
import traceback
import weakref
from collections.abc import Iterator

import torch
from torch import multiprocessing
from torch.utils.data import DataLoader, Dataset

from megatron_medx.data.microbatch import Microbatch
from megatron_medx.errors import DataError, MedxError

STOP_PATIENCE_S = 10.0
"""Longest wait for the thread to end: it ends with the row that it is making; a hung disk must not hang the exit."""


def load_rows(dataset: Dataset, rows: Iterator[int], *, num_workers: int, prefetch_rows: int, pin: bool) -> "RowLoader":
    """Start to make the rows of these indices, ahead of whoever takes them.

    Args:
        dataset: row index -> Microbatch; with worker processes it is pickled once for each of them.
        rows: indices, mostly without end; taken one by one by the thread, as far ahead as rows are made.
        num_workers: processes that make rows; 0 means that the thread makes them.
        prefetch_rows: at most so many rows are ready or being made, at least 1; with worker processes so many more for
            each of them. A row of 16,384 tokens, all of images, has 65,536 patches x 1,536 values x 4 bytes = 403 MB.
        pin: hand over tensors in page-locked memory, from which copies to the current CUDA device overlap with work.
    """
    attempts = _Attempts(dataset)
    made = _made_by_workers(attempts, rows, num_workers, prefetch_rows) if num_workers else map(attempts.at, rows)
    return RowLoader(made, prefetch_rows, torch.cuda.current_device() if pin else None)


class RowLoader:
    """Iterator of Microbatches that a thread of this process keeps ready.

    An error that a user can mend (MedxError) and any other comes out of `next()` at the row that it belongs to, and
    again at every later one. The thread ends with `close()`, when nobody refers to the loader any more, or before the
    interpreter exits: a thread that exits within torch's C++ code would abort the process.

    Args:
        made: rows, or the MedxError in place of a row; the thread alone goes through it.
        prefetch_rows: rows that are ready or being made, at least 1.
        pin_device: CUDA device whose context pins the rows; None leaves them as they are.
    """

    def __init__(self, made: Iterator[Microbatch | MedxError], prefetch_rows: int, pin_device: int | None = None):
        self._shelf = _Shelf(queue.SimpleQueue(), threading.Semaphore(prefetch_rows), threading.Event())
        self._end: BaseException | None = None
        self._waited_s = 0.0
        # the thread must not refer to the loader, or the loader would never be given up
        thread = threading.Thread(
            target=_fill, args=(self._shelf, made, pin_device), name="rows ahead of the step", daemon=True
        )
        self._stop = weakref.finalize(self, _stop, self._shelf, thread)  # also before the interpreter exits
        thread.start()

    def __iter__(self) -> "RowLoader":
        return self

    def __next__(self) -> Microbatch:
        """The next row; waits until it is made.

        Raises:
            MedxError: of this row.
            RuntimeError: a worker process died; a DataError where that is noticed by missing its rows.
            StopIteration: the indices are at an end, or the loader is closed.
        """
        if self._end is None:
            start_s = time.perf_counter()
            made = self._shelf.filled.get()
            self._waited_s += time.perf_counter() - start_s
            if not isinstance(made, BaseException):
                self._shelf.places.release()
                return made
            self.close()
            self._end = made
        raise self._end

    def take_waited_s(self) -> float:
        """Seconds that `next()` has waited since this was last asked; the first row has the start of workers."""
        waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s

    def close(self) -> None:
        """End the thread and the worker processes; rows that are ready are dropped. May be called again."""
        self._end = self._end or StopIteration()
        self._stop()


@dataclasses.dataclass(slots=True)
class _Shelf:
    """What the thread and the taker of rows share."""

    filled: queue.SimpleQueue
    """Rows in order; an exception is the last thing in it."""
    places: threading.Semaphore
    """One for each row that may be made."""
    is_closed: threading.Event


def _fill(shelf: _Shelf, made: Iterator[Microbatch | MedxError], pin_device: int | None) -> None:
    """Take rows as long as there are places for them; what ends them, be it StopIteration, is put last."""
    # Of this thread and those that start later. With a second team of OpenMP threads in the process none of them waits
    # awake for work any more: an operation of 8 us in the step took 40 to 70.
    torch.set_num_threads(1)
    try:
        if pin_device is not None:
            torch.cuda.set_device(pin_device)  # of this thread; its first use of device 0 would take memory there
        while shelf.places.acquire() and not shelf.is_closed.is_set():
            row = next(made)
            is_row = isinstance(row, Microbatch)
            shelf.filled.put(_pinned(row) if is_row and pin_device is not None else row)
            if not is_row:
                return
    except BaseException as end:
        traceback.clear_frames(end.__traceback__)  # else they keep the workers alive as long as the error is
        shelf.filled.put(end)


def _stop(shelf: _Shelf, thread: threading.Thread) -> None:
    """End the thread; the worker processes end when it lets go of them."""
    shelf.is_closed.set()
    shelf.places.release()
    if thread is not threading.current_thread():  # a garbage collection may run there
        thread.join(STOP_PATIENCE_S)


def _pinned(row: Microbatch) -> Microbatch:
    """The row with its tensors in page-locked memory."""
    fields = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    tensors = {name: value.pin_memory() for name, value in fields.items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(row, **tensors)


class _Attempts(Dataset):
    """Row index -> its Microbatch, or the MedxError in its place.

    An exception that leaves a worker process arrives as text: torch could not build ours anew.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, j: int) -> Microbatch | MedxError:
        return self.at(j)

    def at(self, j: int) -> Microbatch | MedxError:
        """What comes of row j."""
        try:
            return self.dataset[j]
        except MedxError as error:
            return error


def _made_by_workers(
    attempts: _Attempts, rows: Iterator[int], num_workers: int, prefetch_rows: int
) -> Iterator[Microbatch | MedxError]:
    """Rows from worker processes, in the order of the indices, whichever process is first.

    How they start: a copy by `fork` of a rank is not safe. Locks that a thread of NCCL, gloo, CUDA or OpenMP holds at
    that moment stay locked in the copy, CUDA cannot be used there, and open shards would share one file position. So
    workers come from a fork server: a fresh process without threads, which imports the dataset's module once and is
    copied for each worker. The dataset reaches them pickled, so an open file in it is refused instead of shared. Rows
    come back in shared memory, so /dev/shm must hold those that are ahead.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([type(attempts.dataset).__module__, __name__])
    loader = DataLoader(
        attempts,
        sampler=rows,
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=prefetch_rows,
        collate_fn=_as_it_is,
        multiprocessing_context=context,
        worker_init_fn=_end_with_the_rank,
        generator=torch.Generator(),  # else one number of this process's random stream is drawn for the workers
    )
    return _until_a_worker_dies(iter(loader))  # the workers start here, before the thread


def _until_a_worker_dies(made: Iterator[Microbatch | MedxError]) -> Iterator[Microbatch | MedxError]:
    """The rows, and in place of the one for which a dead worker is missed an error that says so.

    Where torch is told of the death first it says so itself; but mostly rows of that worker are on the way, and what
    is seen is that their shared memory cannot be had.
    """
    try:
        yield from made
    except (ConnectionError, EOFError) as error:
        yield DataError(
            f"a worker process that makes rows has died ({error})",
            "memory for all of them, also in /dev/shm",
            "look for the kernel's out-of-memory message in `dmesg`; lower data.num_workers or data.prefetch_rows",
        )


def _end_with_the_rank(worker: int) -> None:
    """Make this worker end when its rank is killed.

    torch's workers watch the process that they were copied from, here the fork server, which lives as long as they do.
    """

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, name="end with the rank", daemon=True).start()


def _as_it_is(row: Microbatch | MedxError) -> Microbatch | MedxError:
    return row
