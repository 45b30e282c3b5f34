"""The HTTP endpoint of a rank: ``/metrics`` for Prometheus, ``/healthz`` for what restarts it.

No client may slow training down: pages are made a few times a second at most, each connection has a time
limit of seconds, and of too many the oldest is closed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import socketserver
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from ppar_dist.errors import UserError

_PAGE_S = 0.2  # for which a page is served again
_CLIENT_S = 5.0  # for which a client may keep a thread waiting
_CLIENTS = 32  # at once
_POLL_S = 0.1  # until `stop` is noticed

log = logging.getLogger(__name__)


class Health(NamedTuple):
    """Whether a rank advances, and what it says about itself."""

    ok: bool
    facts: dict[str, Any]


class _Page:
    """The metrics as text, made again at most every ``_PAGE_S``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._lock = Lock()
        self._text, self._made = b"", float("-inf")
        self.served = float("-inf")  # when the newest page that a client has got was made

    def send(self, send: Callable[[bytes], None]) -> None:
        """Give the page to ``send``; it counts as served only if that does not fail."""
        with self._lock:
            now = time.monotonic()
            if now - self._made > _PAGE_S:
                self._text, self._made = generate_latest(self._registry), now
            text, made = self._text, self._made
        send(text)
        self.served = max(self.served, made)


class _Handler(BaseHTTPRequestHandler):
    timeout = _CLIENT_S
    server_version, sys_version = "ppar_dist", ""
    server: _Server

    def do_GET(self) -> None:
        """Answer the two paths there are."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self.server.page.send(lambda text: self._send(HTTPStatus.OK, CONTENT_TYPE_PLAIN_0_0_4, text))
        elif path == "/healthz":
            ok, facts = self.server.health()
            status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
            self._send(status, "application/json", json.dumps(facts).encode() + b"\n")
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"/metrics and /healthz are served here\n")

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """A scrape is not an event of the run."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: str, port: int, page: _Page, health: Callable[[], Health]) -> None:
        found = socket.getaddrinfo(address or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family, host = found[0], found[4][0]
        self.page, self.health = page, health
        self._clients: dict[socket.socket, None] = {}  # oldest first
        self._lock = Lock()
        super().__init__((str(host), port), _Handler)

    def server_bind(self) -> None:
        """Bind without asking name servers for this machine's name, which may take long and is not used."""
        socketserver.TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own; one client too many costs the oldest its connection."""
        with self._lock:
            self._clients[request] = None
            if len(self._clients) > _CLIENTS:
                oldest = next(iter(self._clients))
                del self._clients[oldest]
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread wakes up and ends
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The client is served, or has failed: its place is free."""
        with self._lock:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave or are too slow are not events of the run either."""
        log.debug("a client of the endpoint went wrong", exc_info=True)


class Endpoint:
    """A running server of one registry; ``stop`` it, or use it as a context manager.

    Attributes:
        address: the interface it listens on.
        port: the port it really listens on, also when 0 (any free port) was asked for.
    """

    def __init__(self, address: str, port: int, registry: CollectorRegistry, health: Callable[[], Health]):
        self._page = _Page(registry)
        self._server = _Server(address, port, self._page, health)
        self.address, self.port = address, int(self._server.server_port)
        self._thread = Thread(target=self._server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The address to scrape."""
        return f"http://{host_port(self.address, self.port)}/metrics"

    @property
    def served(self) -> float:
        """When, on the monotonic clock, the newest metrics were made that a client has got."""
        return self._page.served

    def stop(self) -> None:
        """Stop serving and free the port; a second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(
    address: str,
    port: int,
    registry: CollectorRegistry,
    health: Callable[[], Health] = lambda: Health(True, {}),
) -> Endpoint:
    """Serve ``registry`` and ``health`` over HTTP from daemon threads; port 0 takes any free one.

    Raises:
        UserError: the port is taken or the address is not one of this machine.
    """
    try:
        return Endpoint(address, port, registry, health)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot serve metrics on {host_port(address, port)}: {reason}; set monitoring.port to a free "
            "port (0: any) or monitoring.address to an interface of this machine"
        ) from None


def host_port(address: str, port: int) -> str:
    """``address:port``, as it stands in a URL."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
