"""Ranks and collectives. The only module that imports torch.distributed or reads a launcher's environment."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist

# The variables that torchrun and the DeepSpeed launcher both set.
_RANK, _LOCAL_RANK, _WORLD_SIZE = "RANK", "LOCAL_RANK", "WORLD_SIZE"
_INTERFACE = "GLOO_SOCKET_IFNAME"
_LOOPBACK = ("127.0.0.1", "127.0.1.1", "::1")
_OUTSIDE = "192.0.2.1"  # reserved for documentation
_LOOK_S = 1.0

# What gloo and the store say, in a RuntimeError, when a peer has died, hangs, or cannot be reached. Behind
# those of reading and writing stand the kernel's words, such as "No route to host".
_PEER_FAILURES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Read error [",
    "writev [",
    "Socket closed [",
    "Socket unexpectedly closed [",
    "Read timeout [",
    "Write timeout [",
    "Connect timeout [",
    "Timed out waiting",
    "Application timeout caused pair closure",
    "connectFullMesh failed",
)


class BoardUnreachable(OSError):
    """The store of the board cannot be reached, or has gone."""


class NotMet(RuntimeError):
    """The ranks did not come together; the message says which rank waited, where, and for how long."""


class Waiting:
    """Which collective the main thread is in, for whoever watches it from another thread."""

    def __init__(self) -> None:
        """Nothing is waited for."""
        self.name = ""

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """The block waits for other ranks in the collective ``name``."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.name = name
        try:
            yield
        finally:
            self.name = ""


@dataclass(frozen=True)
class World:
    """Who this process is among the ranks, and the collectives it may call.

    With ``world_size`` 1 every collective is the identity, so callers need no second path.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    statistics_group: Any = None  # own group: never interleaves with the gradient reduction
    waiting: Waiting = field(default_factory=Waiting, compare=False, repr=False)

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and logs."""
        return self.rank == 0

    def start_sum(self, tensor: torch.Tensor) -> PendingSum:
        """Start summing ``tensor`` in place over the ranks; it is valid after ``wait``."""
        if self.world_size == 1:
            return PendingSum(None, self.waiting)
        work = dist.all_reduce(tensor, group=self.statistics_group, async_op=True)
        return PendingSum(work, self.waiting)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum ``tensor`` in place over the ranks and return it."""
        self.start_sum(tensor).wait()
        return tensor

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            with self.waiting.inside("barrier"):
                dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable ``value``, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        device = self.device if self.device.type == "cuda" else None
        with self.waiting.inside("broadcast"):
            dist.broadcast_object_list(box, src=0, device=device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable ``value``, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with self.waiting.inside("gather"):
            dist.all_gather_object(values, value)
        return values


@dataclass(frozen=True)
class PendingSum:
    """A sum under way."""

    work: Any
    waiting: Waiting

    def wait(self) -> None:
        """Block until the sum is complete."""
        if self.work is not None:
            with self.waiting.inside("sum"):
                self.work.wait()


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
            BoardUnreachable: the store does not answer; a later call connects anew.
        """
        with self._connected() as store:
            store.set(self._key(self._world.rank), text)

    def read(self) -> dict[int, str]:
        """What each rank has posted last, by rank; without the ranks that never posted.

        Raises:
            BoardUnreachable: the store does not answer; a later call connects anew.
        """
        with self._connected() as store:
            unknown = set(range(self._world.world_size)) - self._known
            # Only for keys that exist: a store waits for the others to be made.
            self._known |= {rank for rank in unknown if store.check([self._key(rank)])}
            ranks = sorted(self._known)
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


def meet(timeout_s: float) -> tuple[World, Board]:
    """``join`` and ``open_board``, for a job of which a rank or the network may be missing at the start.

    Raises:
        NotMet: not all ranks came within ``timeout_s`` seconds, or one was lost meanwhile.
    """
    began = time.monotonic()
    try:
        world = join(timeout_s=timeout_s)
        return world, open_board(world)
    except Exception as error:
        if not is_peer_failure(error):
            raise
        host, port = _store_address(os.environ)
        who = f"rank {os.environ[_RANK]} of {os.environ[_WORLD_SIZE]} on {socket.gethostname()}"
        reason = str(error).partition("\n")[0]
        raise NotMet(
            f"{who} did not meet the others at {host}:{port} in {time.monotonic() - began:.0f} s "
            f"(limit {timeout_s:g}): a host did not start, or cannot be reached; {reason}"
        ) from error


def open_board(world: World, timeout_s: float = 30.0) -> Board:
    """The board of ``world``; all ranks call it together, after ``join``.

    A store may outlive a start of the job (torchrun's agent hosts it), so each start writes under an id of
    its own. ``timeout_s`` bounds one attempt to connect.
    """
    if world.world_size == 1:
        return Board(world, "board", dist.HashStore, "the store of this process", hosted_here=True)
    prefix = world.broadcast(f"ppar_dist/board/{uuid.uuid4().hex}")
    host, port = _store_address(os.environ)
    by_agent = _is_hosted_by_agent(os.environ)

    connected = False

    def connect() -> dist.Store:
        nonlocal connected
        if (
            connected
        ):  # and lost: where nobody listens any more, torch would try for long, and log each attempt
            socket.create_connection((host, port), timeout_s).close()
        connected = True
        timeout = timedelta(seconds=timeout_s)
        return dist.TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)

    where = f"{'the launcher' if by_agent else 'rank 0'} on {host}:{port}"
    return Board(world, prefix, connect, where, hosted_here=world.is_main and not by_agent)


def scheduler_job(environment: Mapping[str, str] | None = None) -> str | None:
    """The id that Slurm gave the job this process is part of; None outside."""
    return (os.environ if environment is None else environment).get("SLURM_JOB_ID") or None


def own_address(world: World) -> str:
    """The address of this machine towards the store's; its loopback address for a rank alone."""
    if world.world_size == 1:
        return "127.0.0.1"
    return _address_towards(*_store_address(os.environ))


def is_peer_failure(error: BaseException) -> bool:
    """Whether ``error``, or what it came from, says that a collective failed because of another rank."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        if isinstance(link, (dist.DistError, BoardUnreachable)):
            return True
        if isinstance(link, RuntimeError) and any(text in str(link) for text in _PEER_FAILURES):
            return True
        seen.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return False


def join(environment: Mapping[str, str] | None = None, timeout_s: float = 600.0) -> World:
    """Join the ranks that the launcher described in the environment; alone where it did not.

    Backend: nccl where there are GPUs, else gloo.
    """
    variables = os.environ if environment is None else environment
    rank = int(variables.get(_RANK, "0"))
    world_size = int(variables.get(_WORLD_SIZE, "1"))
    local_rank = int(variables.get(_LOCAL_RANK, "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if _RANK in variables and _INTERFACE not in variables:
            os.environ[_INTERFACE] = _interface_towards(*_store_address(variables), timeout_s)
        timeout = timedelta(seconds=timeout_s)
        store = _rendezvous(variables, timeout)
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timeout, **store)
    group = dist.new_group(timeout=timedelta(seconds=timeout_s)) if world_size > 1 else None
    return World(rank, local_rank, world_size, device, group)


def leave() -> None:
    """Leave the process group, if this process is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _store_address(variables: Mapping[str, str]) -> tuple[str, int]:
    return variables["MASTER_ADDR"], int(variables["MASTER_PORT"])


def _address_towards(host: str, port: int) -> str:
    """This machine's own address on the way to ``host``."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing, but picks the route
        return str(probe.getsockname()[0])


def _address_away(otherwise: str) -> str:
    """This machine's own address on the way to the outside, where there is a way."""
    try:
        return _address_towards(_OUTSIDE, 1)
    except OSError:
        return otherwise


def _interface_towards(host: str, port: int, timeout_s: float) -> str:
    """The network interface on the way to the store; "", gloo's own choice, where it cannot be told.

    A host that starts later than this one may not have a name yet; that is waited for.

    Left to itself, gloo looks up the machine's own name, and takes the loopback interface where that is in no
    directory or stands for 127.0.1.1, as on Debian: ranks of other machines could then not connect.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            own = _address_towards(host, port)
            if own in _LOOPBACK and host not in (*_LOOPBACK, "localhost"):  # a name that stands for 127.0.1.1
                own = _address_away(own)
            break
        except OSError:
            if time.monotonic() > deadline:
                return ""  # joining fails alike, and says so
            time.sleep(_LOOK_S)
    owners = (
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(entry.address.partition("%")[0] == own for entry in addresses)
    )
    return next(owners, "")


def _rendezvous(variables: Mapping[str, str], timeout: timedelta) -> dict[str, Any]:
    """The store through which the ranks meet, where it is not the one that torch makes of the environment."""
    if _RANK not in variables:
        return {"store": dist.HashStore()}  # one rank needs neither a port nor a launcher
    if not _is_hosted_by_agent(variables):
        return {}
    # torchrun's agent keeps its store when it starts the ranks again. Without a prefix of this start they
    # would find the addresses of those before, and gloo would try to connect to the dead.
    host, port = _store_address(variables)
    store = dist.TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)
    return {"store": dist.PrefixStore(f"start-{variables.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)}


def _is_hosted_by_agent(variables: Mapping[str, str]) -> bool:
    return variables.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
