"""Image and label files on disk, whatever the case of their names."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ppar_dist.errors import DataError
from ppar_dist.pictures import SUFFIXES, is_clutter


def images_below(folder: Path) -> list[Path]:
    """Image files of a folder and its subfolders, sorted by path; none when there is no folder.

    Links to folders are followed, clutter is left out.

    Raises:
        DataError: a folder cannot be listed.
    """
    found = []
    for here, folders, names in os.walk(folder, onerror=_unlistable, followlinks=True):
        folders[:] = [name for name in folders if not (is_clutter(name) or _leads_back(here, name))]
        pictures = [name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES]
        found += [Path(here, name) for name in pictures if not is_clutter(name)]
    return sorted(found)


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


def _leads_back(here: str, name: str) -> bool:
    """Whether a folder is a link to one that it is in."""
    path = Path(here, name)
    return path.is_symlink() and Path(here).resolve().is_relative_to(path.resolve())


def _unlistable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise DataError(f"cannot list folder {error.filename}: {error.strerror}; check its permissions")
