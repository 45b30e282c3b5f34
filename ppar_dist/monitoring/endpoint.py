"""The HTTP endpoint that Prometheus scrapes."""

from __future__ import annotations

from threading import Thread
from types import TracebackType
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from ppar_dist.config import ConfigError


class Endpoint:
    """A running server of one registry; ``stop`` it, or use it as a context manager.

    Attributes:
        address: the interface it listens on.
        port: the port it really listens on, also when 0 (any free port) was asked for.
    """

    def __init__(self, address: str, server: WSGIServer, thread: Thread) -> None:
        self.address = address
        self.port: int = server.server_port
        self._server = server
        self._thread = thread

    @property
    def url(self) -> str:
        """The address to scrape."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}/metrics"

    def stop(self) -> None:
        """Stop serving and free the port; a second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(address: str, port: int, registry: CollectorRegistry) -> Endpoint:
    """Serve ``registry`` over HTTP from a daemon thread; port 0 takes any free one.

    Raises:
        ConfigError: the port is taken or the address is not one of this machine.
    """
    try:
        server, thread = start_http_server(port, addr=address, registry=registry)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"cannot serve metrics on {address}:{port}: {reason}; set monitoring.port to a free port "
            "(0: any) or monitoring.address to an interface of this machine"
        ) from None
    return Endpoint(address, server, thread)
