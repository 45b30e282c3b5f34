"""Image and label files on disk, whatever the case of their names."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from ppar_dist.errors import DataError
from ppar_dist.pictures import SUFFIXES, is_clutter

OTHER_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".gif", ".jp2", ".j2k", ".jxl", ".jfif", ".jpe", ".pgm", ".pnm", ".pbm"}
    | {".dng", ".cr2", ".nef", ".arw", ".exr", ".hdr", ".tga"}
)
"""Endings of pictures that are not read."""


def images_below(folder: Path, suffixes: frozenset[str] = SUFFIXES) -> list[Path]:
    """Image files of a folder and its subfolders, sorted by path; none when there is no folder.

    Links to folders are followed, but each real folder is searched once; clutter is left out.

    Raises:
        DataError: a folder cannot be listed.
    """
    found = []
    for here, names in _folders_below(folder):
        pictures = [name for name in names if os.path.splitext(name)[1].lower() in suffixes]
        found += [here / name for name in pictures if not is_clutter(name)]
    return sorted(found)


def _folders_below(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each real folder and the names in it, under its own path where it has one below, else by a link."""
    seen, tops = set[str](), [folder]
    while tops:
        links = []
        for top in tops:
            for here, folders, names in os.walk(top, onerror=_unlistable):
                real = os.path.realpath(here)
                folders[:] = sorted(name for name in folders if real not in seen and not is_clutter(name))
                links += [Path(here, name) for name in folders if os.path.islink(os.path.join(here, name))]
                if real not in seen:
                    yield Path(here), names
                seen.add(real)
        tops = links


def labels_on_disk(wanted: Sequence[Path]) -> list[Path]:
    """Each wanted file, or in its place the only one of its folder that differs in case alone.

    Two spellings of a letter that Unicode holds equal count as case. No file takes the place of two: of
    images a.jpg and A.jpg only the first has the label a.png.
    """
    asked: dict[tuple[Path, str], set[str]] = {}
    for path in wanted:
        asked.setdefault((path.parent, _folded(path.name)), set()).add(path.name)
    listed = {folder: _by_folded_name(folder) for folder in {path.parent for path in wanted}}
    found = []
    for path in wanted:
        folded = _folded(path.name)
        there = listed[path.parent].get(folded, [])
        replaced = path.name not in there and len(there) == 1 and len(asked[path.parent, folded]) == 1
        found.append(path.parent / there[0] if replaced else path)
    return found


def _by_folded_name(folder: Path) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    try:
        for name in os.listdir(folder):
            names.setdefault(_folded(name), []).append(name)
    except OSError as error:
        _unlistable(error)
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()


def _unlistable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise DataError(f"cannot list folder {error.filename}: {error.strerror}; check its permissions")
