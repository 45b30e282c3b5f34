"""A small HTTP server of a folder that knows ranges, and makes the faults it is told to."""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO


def certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's certificate for 127.0.0.1, and the file of the CA that has issued it."""
    import trustme

    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return tls, folder / "ca.pem"


@dataclass
class RangeServer:
    """A folder and what is asked of it.

    ``faults``: for each GET to come a status (int), ``cut`` (half of the body, then the end), ``silent`` (the
    same, and nothing for 5 s before the end), ``slow`` (the body in 20 pieces, 0.1 s apart), or None.
    """

    folder: Path
    faults: deque[int | str | None] = field(default_factory=deque)
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    port: int = 0
    scheme: str = "http"
    no_head: bool = False  # HEAD is answered with 405
    version: str | None = "ETag"  # the header that tells a file's: ETag, Last-Modified or None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"


@contextmanager
def range_server(folder: Path, tls: ssl.SSLContext | None = None) -> Iterator[RangeServer]:
    """Serve ``folder`` on a port of its own until the block ends; over TLS, if its certificate is given."""
    state = RangeServer(folder)
    server = _Server(("127.0.0.1", 0), _handler(state))
    if tls is not None:
        state.scheme = "https"
        # The handshake comes with the first read, in the thread of the connection.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client has gone, such as one that does not trust the certificate."""


def _handler(state: RangeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self._end(405) if state.no_head else self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            wanted = self.headers.get("Range", "")
            state.requests.append((self.command, self.path, wanted))
            fault = state.faults.popleft() if with_body and state.faults else None
            path = state.folder / self.path.lstrip("/")
            if isinstance(fault, int) or not path.is_file():
                return self._end(fault if isinstance(fault, int) else 404)
            content, status = _chosen(path.read_bytes(), wanted)
            if status == 416:
                return self._end(status)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Accept-Ranges", "bytes")
            _send_version(self, path, state.version)
            self.end_headers()
            if with_body:
                size = len(content) // 2 if fault in ("cut", "silent") else len(content)
                _send(content[:size], fault == "slow", self.wfile)
            time.sleep(5.0 * (fault == "silent"))
            if fault in ("cut", "silent"):
                self.close_connection = True

        def _end(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


def _send_version(answer: BaseHTTPRequestHandler, path: Path, header: str | None) -> None:
    found = path.stat()
    if header == "ETag":
        answer.send_header("ETag", f'"{found.st_mtime_ns}"')
    elif header is not None:
        answer.send_header(header, formatdate(found.st_mtime, usegmt=True))


def _send(content: bytes, is_slow: bool, to: BinaryIO) -> None:
    size = len(content) // 20 + 1 if is_slow else max(len(content), 1)
    for start in range(0, len(content), size):
        time.sleep(0.1 * is_slow)
        to.write(content[start : start + size])
        to.flush()


def _chosen(content: bytes, wanted: str) -> tuple[bytes, int]:
    """What a range asks for, and the status of the answer."""
    match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
    if match is None:
        return content, 200
    return (b"", 416) if int(match[1]) >= len(content) else (content[int(match[1]) : int(match[2]) + 1], 206)
