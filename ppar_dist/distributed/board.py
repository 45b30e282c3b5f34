"""Short texts that ranks post about themselves, read without a collective."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from ppar_dist.distributed.environment import is_hosted_by_agent, store_address
from ppar_dist.distributed.world import World

_CONNECT_S = 30.0  # for one attempt to reach the store


class BoardUnreachable(OSError):
    """The store of the board cannot be reached, or has ended."""


class Board:
    """Short texts that ranks post about themselves. No collective is needed to read them.

    It lives in the store through which the ranks met, over a connection of its own: the one of the process
    group may be held by a collective that hangs. One thread at a time may use it, and that thread may block
    for as long as the network makes it wait.
    """

    def __init__(
        self, world: World, prefix: str, connect: Callable[[], dist.Store], where: str, hosted_here: bool
    ) -> None:
        """``prefix`` is this start's own, ``connect`` opens the store, which a message calls ``where``.

        ``hosted_here``: the store ends with this process.
        """
        self._world, self._prefix, self._connect = world, prefix, connect
        self.where, self.hosted_here = where, hosted_here
        self._store: dist.Store | None = None
        self._known: set[int] = set()

    def post(self, text: str) -> None:
        """Replace what this rank has said.

        Raises:
            BoardUnreachable: the store does not answer; a later call connects again.
        """
        with self._connected() as store:
            store.set(self._key(self._world.rank), text)

    def read(self, of: Iterable[int] | None = None) -> dict[int, str]:
        """What each rank, or each of some, has posted last, by rank; without those that never posted.

        Raises:
            BoardUnreachable: the store does not answer; a later call connects again.
        """
        with self._connected() as store:
            asked = set(range(self._world.world_size) if of is None else of)
            unknown = asked - self._known
            # Only for keys that exist: a store waits for the others to be made.
            self._known |= {rank for rank in unknown if store.check([self._key(rank)])}
            ranks = sorted(asked & self._known)
            values = store.multi_get([self._key(rank) for rank in ranks]) if ranks else []
            return {rank: value.decode() for rank, value in zip(ranks, values, strict=True)}

    def _key(self, rank: int) -> str:
        return f"{self._prefix}/{rank}"

    @contextmanager
    def _connected(self) -> Iterator[dist.Store]:
        try:
            if self._store is None:
                self._store = self._connect()
            yield self._store
        except (RuntimeError, OSError) as error:  # RuntimeError: what all errors of a store are
            self._store = None
            reason = str(error).partition("\n")[0]
            raise BoardUnreachable(f"the store of {self.where} says: {reason}") from error


def open_board(world: World) -> Board:
    """The board of ``world``; all ranks call it together, after ``join``.

    A store may outlive a start of the job (torchrun's agent hosts it), so each start writes under an id of
    its own.
    """
    if world.world_size == 1:
        return Board(world, "board", dist.HashStore, "the store of this process", hosted_here=True)
    prefix = world.broadcast(f"ppar_dist/board/{uuid.uuid4().hex}")
    host, port = store_address(os.environ)
    by_agent = is_hosted_by_agent(os.environ)

    connected = False

    def connect() -> dist.Store:
        nonlocal connected
        if connected:
            # And lost: when the store's process has ended, torch would retry for long, and log each attempt.
            socket.create_connection((host, port), _CONNECT_S).close()
        connected = True
        timeout = timedelta(seconds=_CONNECT_S)
        return dist.TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)

    where = f"{'the launcher' if by_agent else 'rank 0'} on {host}:{port}"
    return Board(world, prefix, connect, where, hosted_here=world.is_main and not by_agent)
