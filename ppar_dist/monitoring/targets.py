"""The file through which Prometheus finds the ranks of a run (its file-based service discovery)."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from ppar_dist.distributed.rendezvous import own_address
from ppar_dist.distributed.world import World
from ppar_dist.files.durable import make_folder, write_atomically
from ppar_dist.monitoring.endpoint import host_port

_OUTSIDE = "192.0.2.1"  # reserved for documentation: asked for the route that leads away from here


class Target(NamedTuple):
    """One rank's endpoint, as others reach it."""

    rank: int
    host: str  # its machine's name
    address: str
    port: int


class TargetsFile:
    """One target group per rank; written and withdrawn by rank 0."""

    def __init__(self, path: Path) -> None:
        """Nothing is written yet."""
        self._path = path
        self._mine: tuple[int, int] | None = None  # what tells it from a file that another job has written

    def write(self, targets: Sequence[Target], labels: Mapping[str, str]) -> None:
        """Replace the file by one that names ``targets``, each with ``labels`` and its rank.

        Raises:
            OSError: it cannot be written.
        """
        groups = [
            {
                "targets": [host_port(target.address, target.port)],
                "labels": {**labels, "rank": str(target.rank)},
            }
            for target in targets
        ]
        make_folder(self._path.parent)
        write_atomically(self._path, json.dumps(groups, indent=1) + "\n")
        self._path.chmod(0o644)  # Prometheus runs as another user
        self._mine = self._mark()

    def withdraw(self, seconds: float = 2.0) -> None:
        """Remove the file, unless another job has written its own there; a second call does nothing.

        Waits for at most ``seconds``: storage that does not answer must not keep a rank from ending.
        """
        if self._mine is None:
            return
        thread = threading.Thread(target=self._remove, args=(self._mine,), name="targets", daemon=True)
        self._mine = None
        thread.start()
        thread.join(seconds)

    def _mark(self) -> tuple[int, int]:
        status = self._path.stat()
        return status.st_ino, status.st_mtime_ns

    def _remove(self, mine: tuple[int, int]) -> None:
        try:
            if self._mark() == mine:
                self._path.unlink()
        except OSError:
            return  # it is not there, or its storage has failed: Prometheus will say that the ranks are down


def reachable_address(address: str, world: World) -> str:
    """Where others reach what listens on ``address``; of all interfaces, the one that leads outside."""
    if address not in ("", "0.0.0.0", "::"):
        return address
    mine = own_address(world)
    if not ip_address(mine).is_loopback:
        return mine
    try:  # the ranks of one machine: they met on its loopback interface
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((_OUTSIDE, 9))  # sends nothing, but picks the route
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()
