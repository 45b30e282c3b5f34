"""How ranks find each other: the store, the network interface, the process group."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist

from ppar_dist.distributed.board import Board, open_board
from ppar_dist.distributed.devices import Wanted, device_of_rank, use_cuda
from ppar_dist.distributed.environment import LOCAL_RANK, RANK, WORLD_SIZE, is_hosted_by_agent, store_address
from ppar_dist.distributed.failures import is_peer_failure
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError

_INTERFACE = "GLOO_SOCKET_IFNAME"
_LOOPBACK = ("127.0.0.1", "127.0.1.1", "::1")
_OUTSIDE = "192.0.2.1"  # reserved for documentation
_LOOK_S = 1.0
_AFTER_OURS_S = 60


class NotMet(RuntimeError):
    """The ranks did not come together; the message says which rank waited, where, and for how long."""


def meet(timeout_s: float, device: Wanted = "auto") -> tuple[World, Board]:
    """``join`` and ``open_board``, for a job of which a rank or the network may be missing at the start.

    Raises:
        NotMet: not all ranks came within ``timeout_s`` seconds, or one was lost meanwhile.
        UserError: ranks would share a GPU, or have none that torch can use.
    """
    began = time.monotonic()
    try:
        world = join(timeout_s=timeout_s, wanted=device)
        return world, open_board(world)
    except Exception as error:
        if "Duplicate GPU" in str(error):
            raise UserError(
                "each rank needs a GPU of its own, and two have the same; start as many ranks as GPUs, or "
                "correct CUDA_VISIBLE_DEVICES"
            ) from None
        if not is_peer_failure(error):
            raise
        host, port = store_address(os.environ)
        who = f"rank {os.environ[RANK]} of {os.environ[WORLD_SIZE]} on {socket.gethostname()}"
        reason = str(error).partition("\n")[0]
        raise NotMet(
            f"{who} did not meet the others at {host}:{port} in {time.monotonic() - began:.0f} s "
            f"(limit {timeout_s:g}): a host did not start, or cannot be reached; {reason}"
        ) from error


def own_address(world: World) -> str:
    """The address of this machine towards the store's; its loopback address for a rank alone."""
    if world.world_size == 1:
        return "127.0.0.1"
    return _address_towards(*store_address(os.environ))


def join(
    environment: Mapping[str, str] | None = None, timeout_s: float = 600.0, wanted: Wanted = "auto"
) -> World:
    """Join the ranks that the launcher described in the environment; alone where it did not.

    Backend: nccl where ``wanted`` means GPUs, else gloo.

    Raises:
        UserError: ranks would share a GPU, or have none that torch can use.
    """
    variables = os.environ if environment is None else environment
    rank = int(variables.get(RANK, "0"))
    world_size = int(variables.get(WORLD_SIZE, "1"))
    local_rank = int(variables.get(LOCAL_RANK, "0"))
    device = torch.device("cpu")
    if use_cuda(wanted, variables):
        is_local = variables.get("MASTER_ADDR") in (*_LOOPBACK, "localhost")
        device = device_of_rank(variables, world_size, is_local)
        torch.cuda.set_device(device)
        _leave_faults_to_the_watchdog(timeout_s)
    on_gpu = device.type == "cuda"
    timeout = timedelta(seconds=timeout_s)
    if not dist.is_initialized():
        if RANK in variables and _INTERFACE not in variables:
            os.environ[_INTERFACE] = _interface_towards(*store_address(variables), timeout_s)
        more = _rendezvous(variables, timeout) | ({"device_id": device} if on_gpu else {})
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", rank=rank, world_size=world_size, timeout=timeout, **more
        )
    group = dist.new_group(timeout=timeout) if world_size > 1 else None
    if on_gpu and group is not None:
        _connect(device, group)
    return World(rank, local_rank, world_size, device, group)


def _leave_faults_to_the_watchdog(timeout_s: float) -> None:
    """Torch's own NCCL watchdog would end a rank before ours has named the one that is at fault.

    Without its error handling a collective whose peer has died waits; ours ends the job.
    """
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(int(timeout_s) + _AFTER_OURS_S))


def _connect(device: torch.device, group: Any) -> None:
    """Have NCCL make its connections now: at the first sum they would be made inside a forward pass."""
    for each in (None, group):
        dist.all_reduce(torch.zeros(1, device=device), group=each)
    torch.cuda.synchronize(device)


def leave() -> None:
    """Leave the process group, if this process is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


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
    """The network interface on the way to the store; "", gloo's own choice, where it is unknown.

    A host that starts later than this one may not have a name yet; the rank waits for it.

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
                return ""  # joining then fails with a message
            time.sleep(_LOOK_S)
    owners = (
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(entry.address.partition("%")[0] == own for entry in addresses)
    )
    return next(owners, "")


def _rendezvous(variables: Mapping[str, str], timeout: timedelta) -> dict[str, Any]:
    """The store through which the ranks meet, where it is not the one that torch makes of the environment."""
    if RANK not in variables:
        return {"store": dist.HashStore()}  # one rank needs neither a port nor a launcher
    if not is_hosted_by_agent(variables):
        return {}
    # torchrun's agent keeps its store when it starts the ranks again. Without a prefix of this start they
    # would find the addresses of those before, and gloo would try to connect to the dead.
    host, port = store_address(variables)
    store = dist.TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)
    return {"store": dist.PrefixStore(f"start-{variables.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)}
