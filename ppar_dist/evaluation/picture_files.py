"""Which pictures a list of files and folders means, and under which names their results are kept."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ppar_dist.errors import UserError
from ppar_dist.pictures import SUFFIXES, is_clutter
from ppar_dist.text import some, visible

LEGEND = "legend.png"
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts"})

_DIGITS = "0123456789"
_VIDEOS = "; a video is named itself, not by its folder"

log = logging.getLogger(__name__)

ENDINGS = (".png", "_overlay.jpg", "_overlay.png")
"""Of the files that may be written for a picture: labels, the overlay as JPEG, or as PNG."""


@dataclass(frozen=True)
class Failure:
    """A picture, or a folder of them, that could not be done."""

    image: Path
    reason: str

    def __str__(self) -> str:
        return f"{visible(str(self.image))}: {visible(self.reason)}"


@dataclass(frozen=True)
class PictureFile:
    """A picture, or a video, to be done."""

    path: Path
    name: PurePath  # of its results, relative to their folder: a picture's without an ending


def picture_files(
    paths: Sequence[Path], out: Path, endings: Sequence[str] = ENDINGS
) -> tuple[list[PictureFile], list[Failure]]:
    """The pictures meant by files and folders, in order, and what in the folders cannot be read.

    A folder is searched with all below it but ``out``; what file managers and notebooks leave there is not a
    picture. The names keep the folders below a given one, and no two are the same, nor that of the legend.

    Args:
        paths: pictures, and folders that are searched.
        out: the folder of the results.
        endings: of the files that may be written for a picture.

    Raises:
        UserError: a path does not exist, or nothing is left.
    """
    if not paths:
        raise UserError("no images given; name at least one file or folder")
    found: list[tuple[Path, PurePath]] = []
    failed: list[Failure] = []
    for path in map(Path, paths):
        inside = _searched(path, out.resolve()) if path.is_dir() else [_given(path)]
        failed += [item for item in inside if isinstance(item, Failure)]
        top = path if path.is_dir() else path.parent
        found += [(item, item.relative_to(top)) for item in inside if isinstance(item, Path)]
    names = _names([name for _, name in found], endings)
    return [PictureFile(path, name) for (path, _), name in zip(found, names, strict=True)], failed


def _given(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"no image at {path}; check the path")
    return path


def _searched(folder: Path, out: Path) -> list[Path | Failure]:
    if folder.resolve() == out:
        raise UserError(
            f"--out {folder} is the folder of the images, and results must not lie among them; give another"
        )
    others: list[Path] = []
    inside = list(_below(folder, out, (), others))
    hint = _VIDEOS if any(path.suffix.lower() in VIDEO_SUFFIXES for path in others) else ""
    if not inside:
        raise UserError(
            f"folder {folder} holds no images ({', '.join(sorted(SUFFIXES))}); give another{hint}"
        )
    if others:
        names = some([visible(str(path.relative_to(folder))) for path in others])
        what = "a file that is not an image by its ending"
        if len(others) > 1:
            what = f"{len(others)} files that are not images by their endings"
        log.warning("%s: passed over %s: %s%s", folder, what, names, hint)
    return inside


def _below(folder: Path, out: Path, above: tuple[Path, ...], others: list[Path]) -> Iterator[Path | Failure]:
    """Pictures in a folder and those below; ``others`` gets the rest. Links are followed, not in a circle."""
    real = folder.resolve()
    if real == out:
        return
    if real in above:
        yield Failure(folder, "a link to a folder above it, left out; remove the link")
        return
    try:
        items = sorted(folder.iterdir(), key=_natural)
    except OSError as error:
        yield Failure(folder, f"cannot read the folder: {error.strerror}; make it readable")
        return
    for item in items:
        if is_clutter(item.name):
            continue
        if os.path.isdir(item):
            yield from _below(item, out, (*above, real), others)
        elif item.suffix.lower() in SUFFIXES:
            yield item
        else:
            others.append(item)


def _natural(path: Path) -> tuple[list[tuple[bool, int, str]], str]:
    """An order in which frame9 comes before frame10: runs of digits count as numbers."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    return [
        (part[0] not in _DIGITS, int(part) if part[0] in _DIGITS else 0, part) for part in parts
    ], path.name


def _names(files: Sequence[PurePath], endings: Sequence[str]) -> list[PurePath]:
    """Paths without endings, told apart by a number where two results, or a result and a folder, clash.

    Capitals do not tell names apart: not every file system keeps them.
    """
    taken = {_key(folder) for file in files for folder in file.parents} | {LEGEND}
    names = []
    for file in files:
        stem, number = file.with_suffix(""), 1
        name = stem
        while taken & (results := {_key(item) for item in possible_results(name, endings)}):
            number += 1
            name = stem.with_name(f"{stem.name}-{number}")
        taken |= results
        names.append(name)
    return names


def possible_results(name: PurePath, endings: Sequence[str] = ENDINGS) -> list[PurePath]:
    """The files that may be written for a picture's name, in the order of their endings."""
    return [name.with_name(name.name + ending) for ending in endings]


def _key(path: PurePath) -> str:
    return str(path).casefold()


def video_files(paths: Sequence[Path]) -> list[PictureFile]:
    """Videos, each with the name of its result: the file's own, numbered where one is there already.

    Raises:
        UserError: a path does not exist.
    """
    found, taken = [], set()
    for path in paths:
        if not path.exists():
            raise UserError(f"no video at {path}; check the path")
        name, number = PurePath(f"{path.stem}.mp4"), 1
        while _key(name) in taken:
            number += 1
            name = PurePath(f"{path.stem}-{number}.mp4")
        taken.add(_key(name))
        found.append(PictureFile(path, name))
    return found
