"""Loader workers: how they start, which signals reach them, and which one died."""

from __future__ import annotations

import errno
import functools
import multiprocessing
import multiprocessing.queues
import multiprocessing.util
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Generator, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset

from ppar_dist.errors import UserError
from ppar_dist.processes.proc import die_with_parent
from ppar_dist.processes.signals import SAME_REQUEST_S

# A worker hands its tensors over through a UNIX socket <temporary folder>/pymp-xxxxxxxx/listener-xxxxxxxx.
_SOCKET_PATH = 107  # bytes, the kernel's limit
_SOCKET_NAME = len("/pymp-xxxxxxxx/listener-xxxxxxxx")
# Errors of sockets and of their folder that a new start would meet again.
_HOPELESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
PREFETCH = 2  # micro-batches that each worker holds ready
DYING_S = 5.0  # a killed process closes its sockets, frees its memory, and only then ends


class WorkerDied(RuntimeError):
    """A loader worker was killed or left; the message names worker, pid, signal and rank."""


def check_temporary_folder() -> None:
    """Raises UserError when the temporary folder's path is too long for the sockets of loader workers."""
    folder, longest = tempfile.gettempdir(), _SOCKET_PATH - _SOCKET_NAME
    if len(os.fsencode(folder)) > longest:
        raise UserError(
            f"the temporary folder of loader workers has a path of at most {longest} bytes, got "
            f"{len(os.fsencode(folder))}: {folder}; set TMPDIR to a shorter one, or data.workers=0"
        )


class _Failed(NamedTuple):
    """The last words of a worker of which a helper thread failed."""

    pid: int
    error: str
    hopeless: bool


class LoaderWorkers:
    """The worker processes of one rank's loader; they end with the process that started them.

    Args:
        count: number of workers; 0 loads in this process.
        rank: for messages.
        dying_s: seconds that a worker whose connection broke has to end.
    """

    def __init__(self, count: int, rank: int, dying_s: float = DYING_S) -> None:
        self.count, self.rank, self.dying_s = count, rank, dying_s
        self._children: list[BaseProcess] = []  # by worker number
        self._last_words, self._last_word = multiprocessing.Pipe(duplex=False)  # of workers; for one of them

    def iterate(self, dataset: IterableDataset[Any]) -> Generator[Any, None, None]:
        """What the workers make of ``dataset``, in turn; to be called by the main thread.

        Closing the generator ends the workers. Leaving that to the garbage collector may take torch ten
        seconds a worker, or happen in a worker forked later.

        Raises:
            WorkerDied: instead of the next item, when the worker that owes it has died.
            UserError: workers cannot hand over what they make, and could not the next time.
        """
        if self.count:
            check_temporary_folder()
        items = self._start(dataset)
        death = None
        while death is None:
            try:
                item = next(items)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                if not isinstance(error, RuntimeError):
                    self._wait_for_a_death()
                death = self._death()
                if death is None:
                    raise
            else:
                yield item
        for child in self._children:
            child.kill()  # the others may never get a lock that died with this one
        del items  # torch's iterator, which joins them; no traceback may keep it alive
        raise death

    def _start(self, dataset: IterableDataset[Any]) -> Iterator[Any]:
        loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.count,
            prefetch_factor=PREFETCH if self.count else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=functools.partial(_init_worker, os.getpid(), self._last_word),
            generator=torch.Generator(),  # or the loader would draw its base seed from the global state
        )
        before = set(multiprocessing.active_children())
        handler = signal.getsignal(signal.SIGCHLD)
        items = iter(loader)
        # torch's handler raises wherever the main thread is when a worker dies, within a backward pass or a
        # save too. Without it the death comes up where the worker's batch is waited for.
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGCHLD, handler)
        # Torch starts them by number; one may be killed before it has run a line in which to say who it is.
        started = [child for child in multiprocessing.active_children() if child not in before]
        self._children = sorted(started, key=lambda child: int(re.split("[-:]", child.name)[-1]))
        return items

    def _wait_for_a_death(self) -> None:
        """Wait a moment for a worker to be dead.

        The kernel closes the sockets of a killed process before its parent can learn of the end: a batch that
        is being fetched from it fails with a reset connection while the worker still counts as alive.
        """
        end = time.monotonic() + self.dying_s
        while self._children and not self._dead() and time.monotonic() < end:
            time.sleep(0.01)

    def _dead(self) -> list[tuple[int, BaseProcess]]:
        """Workers that have died, with their numbers."""
        workers = enumerate(self._children)
        return [(number, child) for number, child in workers if not child.is_alive() and child.exitcode != 0]

    def _death(self) -> UserError | WorkerDied | None:
        """What a user should know of the workers that have died; None when all live."""
        dead = self._dead()
        if not dead:
            return None
        who = f"rank {self.rank}: {', '.join(_described(number, child) for number, child in dead)}"
        if self._last_words.poll():
            return _explained(who, self._last_words.recv())
        return WorkerDied(
            f"{who}. The usual causes: the memory of the machine or the job was exhausted, "
            "or /dev/shm was full (docker --shm-size sets it); lower "
            f"data.workers={self.count} or give the job more"
        )


def _explained(who: str, failed: _Failed) -> UserError | WorkerDied:
    text = f"{who}; pid {failed.pid} could not hand over what it had made: {failed.error}"
    if failed.hopeless:
        folder = f"the sockets of loader workers are in the temporary folder, {tempfile.gettempdir()}"
        return UserError(f"{text}; {folder}: set TMPDIR to a short path on a local disk, or data.workers=0")
    return WorkerDied(text)


def _described(number: int, child: BaseProcess) -> str:
    code = child.exitcode or 0
    end = f"was killed by {_name(-code)}" if code < 0 else f"exited with code {code}"
    return f"loader worker {number} (pid {child.pid}) {end}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _init_worker(trainer: int, last_word: Connection, _: int) -> None:
    """Workers leave signals to the trainer, which gets the same ones and ends them when it is done."""
    die_with_parent(signal.SIGKILL, trainer)
    _end_with_helper_threads(last_word)
    torch.set_num_threads(1)
    signal.set_wakeup_fd(-1)  # the trainer's, through which this process's signals would look like its own
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _IgnoreFirst())


def _end_with_helper_threads(last_word: Connection) -> None:
    """An error in a helper thread ends this worker: if it lived on, the trainer might wait for it forever.

    Such threads pickle what a worker makes and hand over its memory. They only print their errors: the
    queue's thread by a method, that of the sockets by ``sys.excepthook``, others by ``threading.excepthook``.
    """

    def end(error: BaseException) -> None:
        if multiprocessing.util.is_exiting():
            return
        hopeless = isinstance(error, OSError) and (error.errno in _HOPELESS or "path too long" in str(error))
        if not hopeless:
            traceback.print_exception(error)
            sys.stderr.flush()
        # Less than the kernel writes at once: workers share the pipe.
        last_word.send(_Failed(os.getpid(), f"{type(error).__name__}: {error}"[:1000], hopeless))
        os._exit(1)

    queue = multiprocessing.queues.Queue
    queue._on_queue_feeder_error = staticmethod(lambda error, _: end(error))  # type: ignore[attr-defined]
    sys.excepthook = lambda _, error, __: end(error)
    threading.excepthook = lambda failed: end(failed.exc_value or failed.exc_type())


class _IgnoreFirst:
    """Handler of a signal that a scheduler, and the launcher after it, send to every process of a job.

    What comes within a moment of the first is the same request; a later one is meant for this worker.
    """

    def __init__(self) -> None:
        self._first: float | None = None

    def __call__(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
        elif now - self._first > SAME_REQUEST_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
