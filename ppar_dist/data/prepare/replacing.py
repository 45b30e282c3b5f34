"""What ``prepare`` may write to: a folder, and a domain that is there only if it is the same again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ppar_dist.data.prepare.options import Options
from ppar_dist.data.prepare.source import Pair
from ppar_dist.data.shards.build_index import writing
from ppar_dist.data.shards.manifest import NAME as DOMAIN_FILE
from ppar_dist.data.shards.manifest import read_domain_file
from ppar_dist.data.shards.writer import safe_key
from ppar_dist.errors import DataError
from ppar_dist.text import some


def refuse_no_folder(out: Path) -> None:
    """Whatever ``out`` cannot be made in is refused before the work."""
    with writing(out):  # its name may be too long
        there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "not writable" if there.is_dir() else "not a folder"
        raise DataError(f"--out is a folder to write to, got {out}: {there} is {what}; choose another")


def refuse_other_options(folder: Path, classes: str, dataset: str, options: Options) -> None:
    """A domain that is there is replaced without being asked for only by the same again."""
    if options.overwrite or not (folder / DOMAIN_FILE).exists():
        return
    wanted = (classes, dataset, options.changing())
    there = read_domain_file(folder)
    made = (there.class_set, there.prepared.dataset, there.prepared.options) if there.prepared else None
    if made != wanted:
        how = f"with {_words(*made)}" if made else "in a way that its file does not tell"
        raise DataError(
            f"{folder} is there already, made {how}; this would make it with {_words(*wanted)}. "
            "Choose another --out, or replace it by --overwrite"
        )


def refuse_other_files(folder: Path, pairs: list[Pair], options: Options) -> None:
    """A domain that is there is not replaced unasked by that of another data set.

    A data set that was moved is the same. Of a domain that does not tell its files the keys are compared.
    """
    if options.overwrite or not (folder / DOMAIN_FILE).exists():
        return
    prepared = read_domain_file(folder).prepared
    files = prepared.files if prepared else ""
    left_out = prepared.left_out.values() if prepared else ()
    here = {safe_key(pair.key) for pair in pairs}
    there = _keys(folder) | {safe_key(key) for keys in left_out for key in keys}
    if files == files_digest(pairs) or (not files and here == there):
        return
    lost, new = sorted(there - here), sorted(here - there)
    differs = [f"{len(lost)} of its samples are not in this data set ({some(lost)})"] * bool(lost)
    differs += [f"{len(new)} of this data set are not in it ({some(new)})"] * bool(new)
    differs = differs or ["the samples have the same names, but files of other sizes"]
    raise DataError(
        f"{folder} is there already, made of other files: {' and '.join(differs)}. Choose another --out or "
        "domain name, or replace it by --overwrite"
    )


def _keys(folder: Path) -> set[str]:
    """The keys of a domain's samples; none where they cannot be read."""
    try:
        keys = np.load(folder / "keys.npy", allow_pickle=False)
        return {bytes(key).decode("utf-8", "replace") for key in keys}
    except (OSError, ValueError, TypeError):
        return set()


def files_digest(pairs: Iterable[Pair]) -> str:
    """Changes whenever keys of pairs or sizes of their files do; where the files lie does not count."""
    lines = sorted(f"{pair.key} {_size(pair.image)} {_size(pair.label)}" for pair in pairs)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _words(classes: str, dataset: str, options: dict[str, Any]) -> str:
    listed = {"classes": classes, "data set": dataset} | options
    return ", ".join(f"{name} {value}" for name, value in listed.items())
