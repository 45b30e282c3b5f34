"""Ports that the ranks of this machine listen on: each is bound briefly."""

from __future__ import annotations

import http.client
import os
import re
import socket
import urllib.request
from pathlib import Path

from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.findings import Check, Finding, counted, failure, listing, ok, warning
from ppar_dist.monitoring.health import DEFAULT_PORT
from ppar_dist.processes.proc import Process, listening_ports
from ppar_dist.run import holder

_PORTS = 65536


def metrics_ports(case: ConfigCase) -> Finding | None:
    """Every rank's monitoring port is free on the configured address."""
    monitoring = case.config.monitoring
    if not monitoring.enabled:
        return None
    if monitoring.port == 0:
        return ok(f"monitoring.port=0: any free port of {monitoring.address}")
    first = DEFAULT_PORT if monitoring.port is None else monitoring.port
    ports = range(_PORTS + 1)[first:][: case.ranks]  # at most one beyond the last port there is
    taken = {port: problem for port in ports if (problem := _bind_problem(monitoring.address, port))}
    facts = {"ports": list(ports), "taken": {str(port): problem for port, problem in taken.items()}}
    if not taken:
        span = f"{ports[0]}" if len(ports) == 1 else f"{ports[0]} to {ports[-1]}"
        return ok(f"{counted(len(ports), 'port')} of {monitoring.address} free: {span}", **facts)
    first_taken = next(iter(taken))
    run = _run_serving(monitoring.address, first_taken)
    text = listing(f"{monitoring.address}:{port} ({problem})" for port, problem in taken.items())
    remedy = (
        "set monitoring.port to a free one (0: any) or monitoring.address to an interface of this machine"
    )
    if run is not None and _is_served_from(case.config.run.dir, first_taken):
        return warning(f"{text}: this run is being trained here already", "wait until it has ended", **facts)
    text += f": run {run} is served there" if run else ""
    if monitoring.port is None:
        return ok(f"{text}; other free ports are taken", **facts)
    return failure(f"cannot serve metrics on {text}", remedy, **facts)


def master_port(case: ConfigCase) -> Finding | None:
    """The port at which the ranks meet is free, where the environment names one and it is this machine's."""
    text = os.environ.get("MASTER_PORT")
    if text is None:
        return None
    if not text.isdigit() or not 0 < int(text) < 65536:
        return failure(
            f"MASTER_PORT={text!r} is not a port", "set it to a number from 1024 to 65535, or unset it"
        )
    problem = _bind_problem("", int(text))
    if problem:
        return failure(
            f"MASTER_PORT={text} cannot be listened on ({problem})", "set it to a free port", port=int(text)
        )
    return ok(f"MASTER_PORT={text} is free", port=int(text))


def _bind_problem(address: str, port: int) -> str | None:
    """Why nothing can listen on a port, None when it can; the options are those of the server."""
    if not port < _PORTS:
        return "no such port"
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _is_served_from(run: Path, port: int) -> bool:
    """Whether the job that holds this run's folder serves a port; another run may bear the same name."""
    found = holder.read_holder(run)
    if found is None or holder.look(found) not in (Process.ALIVE, Process.STOPPED):
        return False
    return port in listening_ports(found.pid)


def _run_serving(address: str, port: int) -> str | None:
    """The name of the run whose metrics are served at a port, None if it does not serve a run's metrics."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    url = f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"
    try:
        # No proxy: the port is this machine's own.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=5) as answer:
            page = answer.read(1 << 20).decode("utf-8", "replace")
    except (OSError, ValueError, http.client.HTTPException):
        return None
    found = re.search(r'^ppar_run_info\{[^}]*\brun="([^"]*)"', page, re.MULTILINE)
    return found[1] if found else None


CHECKS = (
    Check("metrics ports", metrics_ports),
    Check("master port", master_port),
)
