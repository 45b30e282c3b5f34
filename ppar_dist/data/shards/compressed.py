"""The shards of a folder as plain tars: compressed ones are unpacked, for samples are read at offsets."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ppar_dist.errors import DataError
from ppar_dist.pictures import is_clutter

UNPACKED = ".unpacked.tar"
_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_ARCHIVE = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2?|txz|tzst|zip|7z|rar)$", re.IGNORECASE)
_ZSTD = b"\x28\xb5\x2f\xfd"
# First bytes of a file → its opener.
_OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}


class ShardFile(NamedTuple):
    """A shard of a folder: the file, and the plain tar beside it that it is unpacked to; None: it is one."""

    path: Path
    plain: Path | None


def shard_files(folder: Path) -> list[ShardFile]:
    """The shards of a folder in the order of their names.

    Raises:
        DataError: two shards would be unpacked to one name.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and _ending(path) is not None)
    made = {path: _unpacked_name(path) for path in files if not _is_plain(path)}
    _refuse_same_names(made)
    unpacked = set(made.values())
    return [ShardFile(path, made.get(path)) for path in files if path in made or path not in unpacked]


def plain_shard(file: ShardFile, unpacked: list[str]) -> tuple[Path, str | None]:
    """The tar of a shard, and why it cannot be used, if so.

    A compressed shard, whatever its ending, is unpacked to ``<name>.unpacked.tar`` beside itself; a note of
    that goes to ``unpacked``. So it is each time: neither age nor size tells whether a shard was replaced.

    Raises:
        DataError: there is no room or no right to unpack.
    """
    path, plain = file
    if plain is None:
        return path, None
    if _magic(path).startswith(_ZSTD):
        return path, "it is compressed by zstd; unpack it (zstd -d) and index again"
    problem = _unpack(path, plain, unpacked)
    return path if problem else plain, problem


def passed_over(folder: Path) -> list[str]:
    """Archives below a folder that are not among its shards: in subfolders, or of an ending not known."""
    there = [path for path in folder.rglob("*") if _ARCHIVE.search(path.name) and path.is_file()]
    names = (path.relative_to(folder) for path in there if path.parent != folder or _ending(path) is None)
    return sorted(str(name) for name in names if not is_clutter(name))


def _ending(path: Path) -> str | None:
    name = path.name.lower()
    if is_clutter(name):
        return None
    return max((ending for ending in _ENDINGS if name.endswith(ending)), key=len, default=None)


def _unpacked_name(path: Path) -> Path:
    return path.with_name(path.name[: -len(_ending(path) or "")] + UNPACKED)


def _refuse_same_names(made: Mapping[Path, Path]) -> None:
    first: dict[Path, Path] = {}
    for path, plain in made.items():
        if (other := first.setdefault(plain, path)) != path:
            raise DataError(
                f"{other} and {path} would both be unpacked to {plain.name}; rename or remove one"
            )


def _is_plain(path: Path) -> bool:
    magic = _magic(path)
    return not magic.startswith((*_OPENERS, _ZSTD))


def _magic(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(6)
    except OSError:
        return b""  # whoever reads it next says why


def _unpack(path: Path, plain: Path, unpacked: list[str]) -> str | None:
    """Unpack a shard, as far as it can be; returns what is wrong with it."""
    draft = plain.with_name(f".{plain.name}.{os.getpid()}")
    opener = next(found for magic, found in _OPENERS.items() if _magic(path).startswith(magic))
    try:
        with draft.open("wb") as target, opener(path) as source:
            shutil.copyfileobj(source, target, 1 << 20)
        os.replace(draft, plain)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        return f"it is compressed and damaged ({error}); copy it again"
    except OSError as error:
        if "data stream" in str(error):  # what bz2 raises for damaged bytes
            return f"it is compressed and damaged ({error}); copy it again"
        raise DataError(
            f"cannot unpack {path} to {plain.name} ({error.strerror}); make room, or unpack it"
        ) from None
    finally:
        draft.unlink(missing_ok=True)
    unpacked.append(f"{path.name} to {plain.name}")
    return None
