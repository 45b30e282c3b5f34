"""The machines of a job, and which of them this is.

A job of several machines is the same command on each, as a scheduler starts it: nothing here uses ssh.
"""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass

from ppar_dist.errors import UserError

PORT = 29500  # where the ranks meet, unless told otherwise
_QUIET_PORTS = range(20000, 29000)
_TRIES = 50


@dataclass(frozen=True)
class Nodes:
    """The number of machines in a job, and which of them this is.

    Attributes:
        count: machines of the job.
        rank: number of this one, from 0.
        host: name or address of machine 0, where the ranks meet.
        port: on ``host``.
    """

    count: int
    rank: int
    host: str
    port: int


def one_node() -> Nodes:
    """This machine alone, its ranks meeting on a port that is free now."""
    return Nodes(1, 0, "127.0.0.1", _free_port())


def nodes_of(count: int, rank: int | None, master: str | None) -> Nodes:
    """The machines that a command line describes.

    Args:
        count: machines of the job.
        rank: number of this one.
        master: ``HOST`` or ``HOST:PORT`` of machine 0; ``[ADDRESS]:PORT`` for IPv6.

    Raises:
        UserError: these do not fit each other.
    """
    if count < 1:
        raise UserError(f"--nodes is at least 1, got {count}")
    if count == 1 and master is None:
        if rank not in (None, 0):
            raise UserError(f"--node-rank {rank} of one machine; give --nodes too")
        return one_node()
    if count == 1 and rank is None:
        raise UserError(f"--master {master} is where several machines meet; give --nodes and --node-rank too")
    if rank is None or not 0 <= rank < count:
        raise UserError(
            f"--nodes {count} needs --node-rank from 0 to {count - 1}, another on each machine, got {rank}"
        )
    if master is None:
        raise UserError(f"--nodes {count} needs --master HOST:PORT of the machine of --node-rank 0")
    host, port = _address(master)
    return Nodes(count, rank, host, port)


def _address(text: str) -> tuple[str, int]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        separator, digits = rest[:1], rest[1:]
    else:
        host, separator, digits = text.partition(":")
    port = int(digits) if digits.isdecimal() else (0 if separator else PORT)
    if not host or separator not in ("", ":") or not 0 < port < 65536:
        raise UserError(f"--master is HOST or HOST:PORT, [ADDRESS]:PORT for IPv6, got {text!r}")
    return host, port


def _free_port() -> int:
    """A port that is free now, below the kernel's ephemeral ports.

    The rank that will listen there first loads its libraries: no other process may get the port meanwhile.
    """
    for port in random.SystemRandom().sample(_QUIET_PORTS, _TRIES):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number
