"""Which errors say that a collective failed because of another rank."""

from __future__ import annotations

from collections.abc import Iterator

import torch.distributed as dist

from ppar_dist.distributed.board import BoardUnreachable

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


def is_peer_failure(error: BaseException) -> bool:
    """Whether ``error``, or what it came from, says that a collective failed because of another rank."""
    for link in chain(error):
        if isinstance(link, (dist.DistError, BoardUnreachable)):
            return True
        if isinstance(link, RuntimeError) and any(text in str(link) for text in _PEER_FAILURES):
            return True
    return False


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what it came from, what that came from."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        yield link
        seen.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
