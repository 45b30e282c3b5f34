"""Processes that need not load their libraries: a server has loaded them, and forks for each command.

A rank spends about seven seconds of CPU time on imports, which is more than most tests' training. The
processes are as real as others: each has its own pid, environment, output and exit code, and its interpreter
ends as one does that was started with ``python -m MODULE``. What a test says about starting (launchers,
imports, command lines as ``ps`` shows them) needs a process started in the common way instead.

One connection per process: the client sends a JSON request and the file for the output, the server answers
with the pid, and with the exit status when the process has ended.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import IO, Any

import psutil

_LIBRARIES = ("torch", "deepspeed", "torchvision", "timm", "open_clip", "setuptools")
_REQUEST_BYTES = 1 << 20


class Forked:
    """A process as ``subprocess.Popen`` would give it, forked from the server."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], stdout: IO[Any], stderr: IO[Any]
    ) -> None:
        """``python -m COMMAND`` in this folder."""
        sys.audit("subprocess.Popen", sys.executable, command, None, environment)
        self.returncode: int | None = None
        request = {"command": list(command), "environment": dict(environment), "folder": os.getcwd()}
        self._connection, theirs = socket.socketpair()
        with theirs:
            descriptors = [theirs.fileno(), stdout.fileno(), stderr.fileno()]
            socket.send_fds(_server(), [json.dumps(request).encode()], descriptors)
        self._answers = self._connection.makefile("r")
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        return self._await(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, when it has ended."""
        code = self._await(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Signal it, if it still runs."""
        if self.poll() is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def kill(self) -> None:
        """Kill it, if it still runs."""
        self.send_signal(signal.SIGKILL)

    def _await(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._connection.close()
        return self.returncode


@cache
def _server() -> socket.socket:
    """The connection to this process's server, which is started when it is first needed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    atexit.register(server.wait, 60)
    atexit.register(ours.close)  # called first: the server then ends
    return ours


def _serve(requests: socket.socket) -> list[str] | None:
    """Fork for each request; None at the end, and in a forked process its command."""
    running: dict[int, socket.socket] = {}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([requests, reader], [], [])
        if reader in ready:
            os.read(reader, 4096)
            _tell_ends(running)
        if requests in ready:
            text, descriptors, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 3)
            if not text:
                return None
            connection = socket.socket(fileno=descriptors[0])
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for ours in (requests, connection, *running.values()):
                    ours.close()
                os.close(reader)
                os.close(writer)
                return _become(json.loads(text), descriptors[1:])
            running[pid] = connection
            for descriptor in descriptors[1:]:
                os.close(descriptor)
            connection.sendall(f"{pid}\n".encode())


def _tell_ends(running: dict[int, socket.socket]) -> None:
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with running.pop(pid) as connection:
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _become(request: dict[str, Any], streams: Sequence[int]) -> list[str]:
    """Give this process its streams, environment and folder; returns its command."""
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    command: list[str] = request["command"]
    return command


def _load() -> None:
    import ppar_dist

    for module in pkgutil.walk_packages(ppar_dist.__path__, "ppar_dist."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in _LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # else a collection in a child copies every page
    threads = psutil.Process().num_threads()
    assert threads == 1, f"{threads} threads: only a process of one thread may be forked"


def main() -> None:
    """Serve; in a forked process run its module instead, and end as it ends."""
    _load()
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        command = _serve(requests)
    if command is not None:
        sys.argv = command
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
