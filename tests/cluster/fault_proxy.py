"""An HTTP proxy in front of an object server: it counts requests and makes faults by rule.

It runs in a thread of the test, which switches rules while clients in any process use it::

    with fault_proxy(server.port) as proxy:
        environment = server.environment(proxy.endpoint)
        with proxy.rule(SLOW_DOWN, method="GET", path="/bucket/*", times=2):
            ...
        assert proxy.count("GET") == 3

Requests reach the server with the ``Host`` that the client has signed: the proxy's.
Bodies are held in memory.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from urllib.parse import unquote

from tests.cluster.storage_faults import EndError, Exchange, Fault, Request, Rule

_PIECE = 64 * 1024
_HEAD_LIMIT = 256 * 1024


class FaultProxy:
    """The proxy; its methods may be called from any thread."""

    def __init__(self, server_port: int, seed: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Request] = []
        self.bandwidth = 0.0  # bytes per second of all connections together, both ways; 0: no limit
        self.random = random.Random(seed)
        self._server_port, self._rules, self._free_at = server_port, list[Rule](), 0.0
        self._tls = tls
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        self.port = 0
        self._call(self._listen())

    @property
    def endpoint(self) -> str:
        """What clients are given as endpoint URL."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    def add(self, fault: Fault, **selection: object) -> Rule:
        """A new rule, after those that there are; ``selection`` are the fields of a rule."""
        rule = Rule(fault, **selection)  # type: ignore[arg-type]
        self._rules = [*self._rules, rule]
        return rule

    def remove(self, *rules: Rule) -> None:
        """End rules; without any, all."""
        self._rules = [rule for rule in self._rules if rules and not any(rule is one for one in rules)]

    @contextmanager
    def rule(self, fault: Fault, **selection: object) -> Iterator[Rule]:
        """A rule for the length of a block."""
        rule = self.add(fault, **selection)
        try:
            yield rule
        finally:
            self.remove(rule)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse connections for the length of a block; those that there are get a reset."""
        self._call(self._close())
        try:
            yield
        finally:
            self._call(self._listen())

    def count(self, method: str = "*", path: str = "*") -> int:
        """How many requests there were."""
        return sum(fnmatchcase(one.method, method) and fnmatchcase(one.path, path) for one in self.requests)

    def forget(self) -> None:
        """Start counting anew."""
        self.requests = []

    def stop(self) -> None:
        """End the proxy and all its connections."""
        self._call(self._close())
        self._call(self._cancel())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def pace(self, count: int) -> None:
        """Wait until ``count`` bytes may pass."""
        if self.bandwidth:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + count / self.bandwidth
            await asyncio.sleep(max(0.0, self._free_at - now))

    def _call(self, coroutine: object) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)  # type: ignore[arg-type]

    async def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._server = await asyncio.start_server(
            self._serve, sock=listener, limit=_HEAD_LIMIT, backlog=512, ssl=self._tls
        )

    async def _close(self) -> None:
        # Children made by fork hold the socket, too: closing it here alone would not refuse.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for writer in list(self._writers):
            with suppress(EndError, OSError):
                Exchange(self, Request("", "", "", ""), writer).reset()

    async def _cancel(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._exchange(reader, writer):
                pass
        except (EndError, OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, a fault has ended it, or the proxy ends
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; returns whether the connection stays."""
        head = await reader.readuntil(b"\r\n\r\n")
        lines, headers = _parse(head)
        method, target, _ = lines[0].split(" ", 2)
        path, _, query = target.partition("?")
        key = headers.get("authorization", "").partition("Credential=")[2].partition("/")[0]
        request = Request(method, unquote(path), unquote(query), headers.get("range", ""), key)
        self.requests.append(request)
        body = await self._receive(headers, reader, writer, request)
        exchange = Exchange(self, request, writer)
        faults = [rule.fault for rule in self._rules if rule.takes(request)]
        request.faults = [type(fault).__name__ for fault in faults]
        for fault in faults:
            await fault.before(exchange)
        if not exchange.head:
            exchange.head, exchange.body = await self._forward(lines, body)
            for fault in faults:
                await fault.after(exchange)
        if not exchange.begun:
            await exchange.send(exchange.body)
        return b"content-length:" in exchange.head.lower()

    async def _receive(
        self,
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: Request,
    ) -> bytes:
        """The body of a request."""
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "transfer-encoding" in headers:
            return await _chunks(reader, request)
        left, pieces = int(headers.get("content-length", 0)), []
        while left:
            piece = await reader.readexactly(min(left, _PIECE))
            await self.pace(len(piece))
            pieces.append(piece)
            left -= len(piece)
            request.received += len(piece)
        return b"".join(pieces)

    async def _forward(self, lines: list[str], body: bytes) -> tuple[bytes, bytes]:
        """The server's answer: its head and its body."""
        kept = [line for line in lines if not line.lower().startswith(("connection:", "expect:"))]
        head = "\r\n".join([*kept, "Connection: close", "", ""]).encode("latin-1")
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server_port, limit=_HEAD_LIMIT)
        try:
            writer.write(head + body)
            await writer.drain()
            lines, _ = _parse(await reader.readuntil(b"\r\n\r\n"))
            answer = await reader.read()
        finally:
            writer.close()
        kept = [line for line in lines if not line.lower().startswith("connection:")]
        return "\r\n".join([*kept, "", ""]).encode("latin-1"), answer


@contextmanager
def fault_proxy(server_port: int, seed: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[FaultProxy]:
    """A proxy in front of the server at a port of this machine, ended with the block.

    With a certificate clients speak TLS with it; the server behind it does not.
    """
    proxy = FaultProxy(server_port, seed, tls)
    try:
        yield proxy
    finally:
        proxy.stop()


async def _chunks(reader: asyncio.StreamReader, request: Request) -> bytes:
    """A body in chunks, as it was sent: with their lengths, for it is forwarded so."""
    pieces, size = [], 1
    while size:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        pieces += [line, await reader.readexactly(size + 2)]
        request.received += size
    return b"".join(pieces)


def _parse(head: bytes) -> tuple[list[str], dict[str, str]]:
    """The lines of a head, and its headers by their names in small letters."""
    lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = [line.partition(":") for line in lines[1:]]
    return lines, {name.strip().lower(): value.strip() for name, _, value in pairs}
