"""What can go wrong between a client and its object storage, and the requests to which it happens."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Protocol

_PIECE = 64 * 1024
_MESSAGES = {
    "SlowDown": "Please reduce your request rate.",
    "InternalError": "We encountered an internal error. Please try again.",
    "ServiceUnavailable": "Service is unable to handle request.",
    "ExpiredToken": "The provided token has expired.",
    "AccessDenied": "Access Denied",
}


class EndError(Exception):
    """The client's connection ends here."""


class Line(Protocol):
    """What a proxy gives its faults: how fast bytes pass, and chance."""

    random: random.Random

    async def pace(self, count: int) -> None:
        """Wait until ``count`` bytes may pass."""


@dataclass
class Request:
    """A request as it was counted."""

    method: str
    path: str  # decoded, without the query
    query: str
    range: str  # of the header, or empty
    key: str = ""  # that has signed it
    at: float = field(default_factory=time.monotonic)
    received: int = 0  # bytes of the client's body
    sent: int = 0  # bytes of the answer's body that went to the client
    status: int = 0  # of the answer; 0 where the client got none
    faults: list[str] = field(default_factory=list)


@dataclass
class Exchange:
    """A request on its way, as faults see it."""

    line: Line
    request: Request
    writer: asyncio.StreamWriter
    head: bytes = b""  # of the answer; from a fault: then the request is not forwarded
    body: bytes = b""
    begun: bool = False

    async def send(self, body: bytes) -> None:
        """Send a part of the answer, after the head if that has not gone yet."""
        if not self.begun:
            self.begun = True
            self.request.status = int(self.head.split(None, 2)[1])
            self.writer.write(self.head)
        for start in range(0, len(body), _PIECE):
            piece = body[start : start + _PIECE]
            await self.line.pace(len(piece))
            self.writer.write(piece)
            await self.writer.drain()
            self.request.sent += len(piece)
        await self.writer.drain()

    def reset(self) -> None:
        """End the client's connection with RST."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        raise EndError


@dataclass(frozen=True)
class Fault:
    """Does nothing; each fault overrides what it needs."""

    async def before(self, exchange: Exchange) -> None:
        """The request has been read whole and the server has not seen it."""

    async def after(self, exchange: Exchange) -> None:
        """The server has answered, and the client has no byte of it."""


@dataclass(frozen=True)
class Latency(Fault):
    """Wait between ``least`` and ``most`` seconds before the request is forwarded."""

    least: float
    most: float

    async def before(self, exchange: Exchange) -> None:
        await asyncio.sleep(exchange.line.random.uniform(self.least, self.most))


@dataclass(frozen=True)
class Error(Fault):
    """Answer with an error as S3 does, or as a gateway does (no ``code``); the server sees nothing."""

    status: int
    code: str = ""

    async def before(self, exchange: Exchange) -> None:
        text, kind = "<html><body>gateway</body></html>", "text/html"
        if self.code:
            kind = "application/xml"
            text = (
                f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{self.code}</Code>'
                f"<Message>{_MESSAGES.get(self.code, self.code)}</Message><RequestId>0</RequestId></Error>"
            )
        head = [f"HTTP/1.1 {self.status} {self.code or 'Gateway'}", f"Content-Type: {kind}"]
        head += [f"Content-Length: {len(text)}"]
        exchange.head = "\r\n".join([*head, "", ""]).encode()
        exchange.body = b"" if exchange.request.method == "HEAD" else text.encode()


SLOW_DOWN = Error(503, "SlowDown")
EXPIRED = Error(400, "ExpiredToken")


@dataclass(frozen=True)
class Reset(Fault):
    """Reset the connection: before the server sees the request, or once ``at`` bytes of its answer are sent.

    With ``at=0`` the server has done what was asked, and the client does not know.
    """

    at: int | None = None

    async def before(self, exchange: Exchange) -> None:
        if self.at is None:
            exchange.reset()

    async def after(self, exchange: Exchange) -> None:
        if self.at:
            await exchange.send(exchange.body[: self.at])
            await asyncio.sleep(0.05)  # else the client's system drops what it has not read
        exchange.reset()


@dataclass(frozen=True)
class Cut(Fault):
    """Close the connection after ``at`` bytes of the body; Content-Length promises all of them."""

    at: int

    async def after(self, exchange: Exchange) -> None:
        await exchange.send(exchange.body[: self.at])
        exchange.writer.close()
        raise EndError


@dataclass(frozen=True)
class Stall(Fault):
    """Send nothing for ``seconds`` after ``at`` bytes of the body; with ``at=0`` not even the head."""

    seconds: float
    at: int = 0

    async def after(self, exchange: Exchange) -> None:
        if self.at:
            await exchange.send(exchange.body[: self.at])
        await asyncio.sleep(self.seconds)
        await exchange.send(exchange.body[self.at :])


@dataclass(frozen=True)
class Flip(Fault):
    """Invert the byte ``at`` of the body: damage on the way, of which no header tells."""

    at: int

    async def after(self, exchange: Exchange) -> None:
        body = bytearray(exchange.body)
        body[self.at] ^= 0xFF
        exchange.body = bytes(body)


@dataclass(frozen=True)
class Do(Fault):
    """Call ``action``, such as a PUT of another object under the name, at this point of the request."""

    action: Callable[[], object]
    forwarded: bool = False  # after the server has answered

    async def before(self, exchange: Exchange) -> None:
        if not self.forwarded:
            await asyncio.to_thread(self.action)

    async def after(self, exchange: Exchange) -> None:
        if self.forwarded:
            await asyncio.to_thread(self.action)


def kill(pid: int, forwarded: bool = False) -> Do:
    """SIGKILL to a process, before or after the server has done what was asked."""
    return Do(partial(os.kill, pid, signal.SIGKILL), forwarded)


@dataclass
class Rule:
    """Which requests have a fault: of those that match, every n-th after ``skip``, ``times`` in all."""

    fault: Fault
    method: str = "*"
    path: str = "*"  # a pattern, as of file names; of the decoded path and, after a "?", the query
    key: str = "*"
    skip: int = 0
    every: int = 1
    times: int | None = None
    seen: int = 0
    taken: int = 0

    def takes(self, request: Request) -> bool:
        """Whether this request has the fault; counts it."""
        whole = f"{request.path}?{request.query}" if request.query else request.path
        matches = fnmatchcase(whole, self.path) or fnmatchcase(request.path, self.path)
        matches = matches and fnmatchcase(request.key, self.key)
        if not (fnmatchcase(request.method, self.method) and matches):
            return False
        self.seen += 1
        turn = self.seen - self.skip
        if turn < 1 or turn % self.every or self.taken == self.times:
            return False
        self.taken += 1
        return True
