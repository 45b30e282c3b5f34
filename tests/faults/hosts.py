"""Several hosts on one machine: network namespaces with their own addresses, names and processes.

::

    ppar-PID-N-alpha   eth0 10.77.N.1 ──┐
    ppar-PID-N-beta    eth0 10.77.N.2 ──┤ port-… of a bridge, in the namespace ppar-PID-N-switch
    ppar-PID-N-gamma   eth0 10.77.N.3 ──┘

All links are in these namespaces and end with them, so that nothing is left behind in the machine's own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psutil

from tests.ranks import TIMEOUT_S, free_port, rank_environment

NAMES = ("alpha", "beta", "gamma")
_NAMESPACES = Path("/run/netns")
_NUMBERS = count(1)
_POLL_S = 0.05


def why_not() -> str | None:
    """Why this machine cannot play several hosts; None where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in ("ip", "unshare", "setpriv") if shutil.which(program) is None]
    if missing:
        return f"network namespaces need the program {missing[0]}"
    try:
        with network(1) as hosts:
            hosts[0].run("true")
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {' '.join(error.cmd)}: {error.stderr.strip()}"
    return None


@dataclass(frozen=True)
class Host:
    """A network namespace with one address; what runs in it has a host name and process ids of its own."""

    name: str
    address: str
    namespace: str
    switch: str

    @property
    def _port(self) -> str:
        return f"port-{self.name}"

    def command(self, *command: str) -> list[str]:
        """``command`` as a process of this host, which ends with the process that starts it."""
        script = 'hostname "$0" && exec "$@"'
        apart = ("unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
        inside = ["ip", "netns", "exec", self.namespace, *apart, "sh", "-c", script, self.name, *command]
        return ["setpriv", "--pdeathsig", "KILL", *inside]

    def run(self, *command: str) -> None:
        """Run ``command`` here, to its end."""
        _run(*self.command(*command))

    def take_down(self) -> None:
        """Take this host's own interface down: its kernel knows that there is no way out."""
        _ip("-n", self.namespace, "link", "set", "eth0", "down")

    def pull_cable(self) -> None:
        """Take the other end down: this host's interface loses its carrier."""
        _ip("-n", self.switch, "link", "set", self._port, "down")

    def swallow(self) -> None:
        """Have the switch drop all packets from and to this host; every interface stays up."""
        _ip("-n", self.switch, "link", "set", self._port, "nomaster")

    def restore(self) -> None:
        """Undo any of these."""
        _ip("-n", self.namespace, "link", "set", "eth0", "up")
        _ip("-n", self.switch, "link", "set", self._port, "master", "bridge", "up")


@contextmanager
def network(size: int) -> Iterator[list[Host]]:
    """``size`` hosts that reach each other; they are always removed at the end."""
    number = next(_NUMBERS)
    prefix = f"ppar-{os.getpid()}-{number}"
    switch = f"{prefix}-switch"
    hosts = [
        Host(name, f"10.77.{number % 256}.{place}", f"{prefix}-{name}", switch)
        for place, name in enumerate(NAMES[:size], start=1)
    ]
    namespaces = [switch, *(host.namespace for host in hosts)]
    _sweep()
    try:
        for namespace in namespaces:
            _ip("netns", "add", namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in hosts:
            _plug_in(host)
        yield hosts
    finally:
        for namespace in namespaces:
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, timeout=60, check=False)


def _plug_in(host: Host) -> None:
    port = f"port-{host.name}"
    other_end = ("peer", "name", "eth0", "netns", host.namespace)
    _ip("link", "add", port, "netns", host.switch, "type", "veth", *other_end)
    _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
    host.restore()


def leftovers() -> list[str]:
    """Namespaces and links of this process's networks that still exist."""
    names = [path.name for path in _NAMESPACES.glob(f"ppar-{os.getpid()}-*")]
    links = [path.name for path in Path("/sys/class/net").glob("port-*")]
    return names + links


def _sweep() -> None:
    """Delete the namespaces of test processes that were killed before they could."""
    for path in _NAMESPACES.glob("ppar-*-*-*"):
        if not Path("/proc", path.name.split("-")[1]).exists():
            subprocess.run(["ip", "netns", "del", path.name], capture_output=True, timeout=60, check=False)


@dataclass
class Ranks:
    """One rank on each host, started as a launcher of many hosts would."""

    logs: list[Path] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def output(self, rank: int) -> str:
        """What a rank has said so far."""
        return self.logs[rank].read_text(errors="replace")

    def outputs(self) -> str:
        """What all have said."""
        return "\n".join(f"--- rank {rank}\n{self.output(rank)}" for rank in range(len(self.logs)))

    def verdict(self, rank: int) -> str:
        """Whom a rank's watchdog blames; "" where it said nothing."""
        found = re.search(r"^ppar-dist(?: watchdog)?: (.*)$", self.output(rank), re.MULTILINE)
        return found[1] if found else ""

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until ``condition`` holds; all ranks must live meanwhile."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, f"no {what} in {TIMEOUT_S} s:\n{self.outputs()}"
            assert all(p.poll() is None for p in self.processes), f"ended before {what}:\n{self.outputs()}"
            time.sleep(_POLL_S)

    def wait(self, seconds: float = TIMEOUT_S) -> tuple[list[int], list[float]]:
        """Exit code of each rank, and after how many seconds from now it ended."""
        began = time.monotonic()
        ended: dict[int, float] = {}
        while len(ended) < len(self.processes):
            passed = time.monotonic() - began
            for rank, process in enumerate(self.processes):
                if rank not in ended and process.poll() is not None:
                    ended[rank] = passed
            assert passed < seconds, f"not all ranks ended in {seconds} s:\n{self.outputs()}"
            time.sleep(_POLL_S)
        return [p.returncode for p in self.processes], [ended[rank] for rank in sorted(ended)]


@contextmanager
def ranks_on(hosts: Sequence[Host], folder: Path, *command: str, **variables: str) -> Iterator[Ranks]:
    """Python with the arguments ``command`` as a rank on each host; none is left afterwards."""
    ranks, port = Ranks(), str(free_port())
    folder.mkdir(parents=True)
    try:
        for rank, host in enumerate(hosts):
            environment = rank_environment() | {
                "RANK": str(rank),
                "LOCAL_RANK": "0",
                "WORLD_SIZE": str(len(hosts)),
                "MASTER_ADDR": hosts[0].address,
                "MASTER_PORT": port,
                **variables,
            }
            log = folder / f"rank-{rank}.log"
            with log.open("wb") as stream:
                process = subprocess.Popen(
                    host.command(sys.executable, *command),
                    env=environment,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                )
            ranks.logs.append(log)
            ranks.processes.append(process)
        yield ranks
    finally:
        for process in ranks.processes:
            for one in [*_children(process.pid), process]:
                one.kill()
        for process in ranks.processes:
            process.wait(60)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
