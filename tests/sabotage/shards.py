"""Shards of a domain that vanish and are rewritten once a step is reached.

Each rank does so before it reads its data of that step, so that all see the change at the same position.
"""

from __future__ import annotations

import fcntl
from contextlib import suppress
from pathlib import Path

from tests.bucket import store
from tests.sabotage.hooks import at_phase


def change(step: str, domain: str, gone: str, rewritten: str) -> None:
    """Delete a shard and write zeros over another one before the data of ``step`` are read.

    ``domain`` is a folder or the URL of one on object storage.
    """

    def strike(number: int) -> None:
        if number != int(step):
            return
        if domain.startswith("s3://"):
            _change_objects(f"{domain}/{gone}", f"{domain}/{rewritten}")
            return
        (Path(domain) / gone).unlink(missing_ok=True)
        with (Path(domain) / rewritten).open("r+b", buffering=0) as shard:
            fcntl.flock(shard, fcntl.LOCK_EX)  # ranks come here at the same moment
            if shard.read(1) != b"\0":  # else another rank did, and writing again would be a later change
                shard.seek(0)
                shard.write(b"\0" * (Path(domain) / rewritten).stat().st_size)

    at_phase("data", strike)


def _change_objects(gone: str, rewritten: str) -> None:
    """Of two ranks the second changes nothing: an object's ETag is that of its content."""
    with suppress(FileNotFoundError):
        store().rm_file(gone)
    store().pipe_file(rewritten, bytes(store().size(rewritten)))
