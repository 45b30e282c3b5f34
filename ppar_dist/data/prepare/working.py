"""Unfinished work on the domains of a data set: where it is kept, and how far it is."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ppar_dist.data.shards.build_index import locked, writing
from ppar_dist.errors import UserError

Progress = Callable[[str, int, int], None]
"""Called with a domain, the samples done, and the samples in all."""
_WORTH_KEEPING = 1000  # pairs; fewer are worked on again within seconds


def kept(out: Path, domain: str) -> Path:
    """The folder of unfinished work on a domain."""
    return out / f".{domain}.making"


@contextmanager
def unfinished(out: Path, domains: Iterable[str], pairs: int, alone: bool, of_parts: bool) -> Iterator[None]:
    """Work on domains, alone or on a part. A kill leaves what is done; so does an error, if parts did it or
    it is much.

    Raises:
        DataError: another process works on one of them, or they cannot be written.
    """
    folders, was_there = [kept(out, domain) for domain in domains], out.exists()
    try:
        with ExitStack() as locks, writing(out):
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
                locks.enter_context(locked(folder, alone))
            yield
    except UserError:
        if pairs >= _WORTH_KEEPING or of_parts:
            raise
        _remove(folders)
        if not was_there:
            with contextlib.suppress(OSError):  # something is in it
                out.rmdir()
        raise
    if alone:
        _remove(folders)


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
