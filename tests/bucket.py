"""The bucket ``PPAR_TEST_BUCKET``: with it, tests give their jobs data on object storage instead of a folder.

Tests write shards to folders and name those in configurations; what reads a configuration finds URLs of
copies in the bucket. A test that changes a file afterwards says so with ``follow``. Without the variable all
of this does nothing. By hand, where variables of AWS lead to a server (`tests.cluster.object_server`)::

    PPAR_TEST_BUCKET=NAME python -m pytest tests/faults
"""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

_uploaded: dict[Path, tuple[int, int, int]] = {}  # what each file was when its object was written


def bucket() -> str | None:
    """The bucket's name."""
    return os.environ.get("PPAR_TEST_BUCKET")


def place_of(folder: Path) -> str:
    """Where jobs find the domains in a folder, or a domain: there, or in the bucket, where they go."""
    if bucket() is None:
        return str(folder)
    for path in [known for known in _uploaded if folder in known.parents]:
        follow(path)
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        if path.is_file() and (path.parent / "domain.json").exists():
            _upload(path)
    return f"s3://{_key(folder)}"


def in_bucket(tree: dict[str, Any], run: Path | None = None) -> dict[str, Any]:
    """A configuration whose sources and targets are in the bucket, and which shares no cache with others."""
    data = tree.get("data")
    if bucket() is None or data is None:
        return tree
    root = Path(data["root"])
    if root.is_dir():
        own = root / ".caches" / hashlib.sha256(str(run).encode()).hexdigest()[:12]
        cached = {"folder": str(own)} | data.get("cache", {})
        tree = tree | {"data": data | {"root": place_of(root), "cache": cached}}
    targets = {name: _placed(target) for name, target in tree.get("targets", {}).items()}
    return tree | ({"targets": targets} if targets else {})


def follow(path: Path) -> None:
    """Have the object of a file that was uploaded be what the file is now; none where the file is gone."""
    if path not in _uploaded:
        return
    if path.exists():
        _upload(path)
    else:
        del _uploaded[path]
        store().rm_file(_key(path))


def here(place: Any) -> Path:
    """The folder or file that is where a job finds it."""
    return place if isinstance(place, Path) else Path(str(place).removeprefix(f"s3://{bucket()}"))


@cache
def store() -> Any:
    """The client of the object server."""
    import s3fs

    return s3fs.S3FileSystem()


def _upload(path: Path) -> None:
    now = path.stat()
    state = (now.st_ino, now.st_mtime_ns, now.st_size)
    if _uploaded.get(path) != state:
        store().pipe_file(_key(path), path.read_bytes())
        _uploaded[path] = state


def _placed(target: Any) -> Any:
    return place_of(Path(target)) if isinstance(target, str) and Path(target).is_dir() else target


def _key(path: Path) -> str:
    """Of folders with the same name in other places, each has keys of its own."""
    return f"{bucket()}{path}"
