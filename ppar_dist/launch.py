"""Starting the ranks of this machine through the DeepSpeed launcher."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

import torch

from ppar_dist.config import ConfigError


def is_rank(environment: Mapping[str, str] | None = None) -> bool:
    """Whether a launcher started this process as one of its ranks."""
    return "RANK" in (os.environ if environment is None else environment)


def default_ranks() -> int:
    """One rank per GPU; one where there is none."""
    return max(1, torch.cuda.device_count())


def launch(arguments: Sequence[str], ranks: int) -> int:
    """Run ``ppar-dist ARGUMENTS`` on ``ranks`` ranks of this machine and return their exit code.

    The launcher is deepspeed.launcher.runner; SIGINT and SIGTERM are passed on to it.

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
    process = subprocess.Popen(command, env=environment)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: process.send_signal(received))
    code = process.wait()
    return 128 - code if code < 0 else code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
