"""Starting the ranks of this machine through the DeepSpeed launcher."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

import torch

from ppar_dist.config import ConfigError

_GRACE_S = 35.0  # DeepSpeed's launcher gives its ranks 30 s after a SIGTERM


def is_rank(environment: Mapping[str, str] | None = None) -> bool:
    """Whether a launcher started this process as one of its ranks."""
    return "RANK" in (os.environ if environment is None else environment)


def default_ranks() -> int:
    """One rank per GPU; one where there is none."""
    return max(1, torch.cuda.device_count())


def launch(arguments: Sequence[str], ranks: int) -> int:
    """Run ``ppar-dist ARGUMENTS`` on ``ranks`` ranks of this machine and return their exit code.

    The launcher is deepspeed.launcher.runner. It dies of a signal and leaves the ranks behind, so it gets a
    process group of its own, which SIGINT and SIGTERM end as a whole: 128 + the signal is returned.

    Raises:
        ConfigError: there are GPUs, but fewer than ranks.
    """
    gpus = torch.cuda.device_count()
    if 0 < gpus < ranks:
        raise ConfigError(f"a rank needs a GPU of its own: --nproc {ranks}, but this machine has {gpus}")
    environment = dict(os.environ)
    if not gpus:
        environment["DS_ACCELERATOR"] = "cpu"
    threads = max(1, (os.cpu_count() or 1) // ranks)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks)]
    command += ["--master_port", str(_free_port()), "--no_local_rank", "--log_level", "warning"]
    command += ["--module", "ppar_dist", *arguments]
    return _run_group(command, environment)


def _run_group(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run ``command`` in a process group of its own until all of it has ended; returns its exit code."""
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def end(number: int, _: FrameType | None) -> None:
        received.append(number)
        if process is not None:
            _signal_group(process.pid, signal.SIGTERM)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        if received:  # it came while the process was being made
            _signal_group(process.pid, signal.SIGTERM)
        code = process.wait()
        deadline = time.monotonic() + _GRACE_S
        while received and _signal_group(process.pid, 0) and time.monotonic() < deadline:
            time.sleep(0.1)
        _signal_group(process.pid, signal.SIGKILL)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        return 128 + received[0]
    return 128 - code if code < 0 else code


def _signal_group(group: int, number: int) -> bool:
    """Signal every process of a group; False when there is none left."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
