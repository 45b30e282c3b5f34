"""Worker processes that call one function, ended with their parent.

A command forks them: they need no time to start, and import nothing again. From a process with threads or
with torch they are programs of their own, which import what the function needs and nothing else. Either way
they have no file of their parent's open. A killed parent takes them with it; a killed worker is an error,
not a hang.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol, Self

from ppar_dist.errors import UserError
from ppar_dist.processes.proc import die_with_parent

_AHEAD = 2  # items that wait for each worker
_FILES = "/proc/self/fd"


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """Calls ``function`` on many items, in this process or in workers; a context manager.

    Args:
        function: of a module, importable by its name; items and results can be sent to another process.
        processes: workers; with 1 the items are worked on in this process.
    """

    def __init__(self, function: Callable[[Any], Any], processes: int) -> None:
        self._function = function
        self._workers = [_Worker(function) for _ in range(processes)] if processes > 1 else []
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def in_order(self, items: Iterable[Any]) -> Iterator[Any]:
        """The results in the order of the items, a few of which are worked on ahead.

        Raises:
            UserError: a worker died.
        """
        if not self._workers:
            yield from map(self._function, items)
            return
        with ThreadPoolExecutor(len(self._workers)) as threads:
            ahead: deque[Future[Any]] = deque()
            try:
                for item in items:
                    ahead.append(threads.submit(self._call, item))
                    if len(ahead) > _AHEAD * len(self._workers):
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            except BaseException:
                for future in ahead:
                    future.cancel()
                self.__exit__()  # what is being worked on is not waited for
                raise

    def _call(self, item: Any) -> Any:
        worker = self._free.get()
        try:
            return worker.call(item)
        finally:
            self._free.put(worker)


class _Process(Protocol):
    """A worker as a process, however it was started."""

    def kill(self) -> None: ...

    def wait(self) -> int | None: ...


class _Worker:
    """One worker process, and the connection to it, which no other process has."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._connection, its = multiprocessing.Pipe()
        self._process: _Process = (_Forked if _may_fork() else _Program)(function, its)
        its.close()

    def call(self, item: Any) -> Any:
        """The function's result; raises what it raised."""
        try:
            self._connection.send(item)
            is_result, value = self._connection.recv()
        except (EOFError, ConnectionError):
            code = self._process.wait()
            raise UserError(
                f"a worker process ended with {code}, -9 is a kill: usually memory was exhausted; lower "
                "--processes, or give more memory. Run the command again: what is done is kept"
            ) from None
        if is_result:
            return value
        raise value

    def end(self) -> None:
        """Kill it: what it writes appears whole or not at all."""
        self._process.kill()
        self._process.wait()
        self._connection.close()


def _may_fork() -> bool:
    """Whether a fork is sure to work: no other thread may hold a lock that nobody would release."""
    return os.path.isdir(_FILES) and threading.active_count() == 1 and "torch" not in sys.modules


class _Forked:
    """A copy of this process."""

    def __init__(self, function: Callable[[Any], Any], its: Connection) -> None:
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_forked, args=(function, its, os.getpid()), daemon=True)
        with warnings.catch_warnings():  # Python 3.12 counts the threads of numpy, which stop for a fork
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def wait(self) -> int | None:
        """Its exit code, when it has ended."""
        self._process.join()
        return self._process.exitcode


class _Program(subprocess.Popen[bytes]):
    """A program of its own."""

    def __init__(self, function: Callable[[Any], Any], its: Connection) -> None:
        start = (
            f"import sys; sys.path[:] = {sys.path!r}; from ppar_dist.processes.pool import _started; "
            f"_started({function.__module__!r}, {function.__qualname__!r}, {its.fileno()}, {os.getpid()})"
        )
        command = [sys.executable, "-c", start]
        super().__init__(command, stdin=subprocess.DEVNULL, pass_fds=[its.fileno()])


def _forked(function: Callable[[Any], Any], connection: Connection, parent: int) -> None:
    _begin(parent)
    for number in map(int, os.listdir(_FILES)):
        if number > 2 and number != connection.fileno():  # a lock of the parent's ends with the parent
            with contextlib.suppress(OSError):  # the list's own
                os.close(number)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # else a collection copies every page
    _serve(function, connection)


def _started(module: str, name: str, descriptor: int, parent: int) -> None:
    _begin(parent)
    _serve(getattr(importlib.import_module(module), name), Connection(descriptor))


def _begin(parent: int) -> None:
    die_with_parent(signal.SIGKILL, parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal signals the whole group
    os.dup2(2, 1)  # what a library prints is not output of the command


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    """A worker's life: it ends with the connection."""
    while True:
        try:
            item = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            answer = True, function(item)
        except Exception as error:  # the caller's to handle
            answer = False, _portable(error)
        connection.send(answer)


def _portable(error: Exception) -> Exception:
    """The error, or one of its kind, that another process can read."""
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:  # classes with arguments of their own
        if isinstance(error, UserError):
            return UserError(str(error))
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
