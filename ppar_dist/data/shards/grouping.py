"""The samples of a tar shard, before anything is read: which members belong together, and what each is.

Members of one key stand side by side, as WebDataset groups them. What a member is, its ending says. Dot names
and the like are clutter; of members that are not part of a sample, kinds are counted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ppar_dist.data.shards.sample import SampleError
from ppar_dist.data.shards.tar import Member, members
from ppar_dist.errors import UserError
from ppar_dist.pictures import is_clutter
from ppar_dist.text import printable

IMAGE_ENDINGS = ("jpg", "jpeg", "image.png", "image.jpg", "rgb.png", "rgb.jpg")
LABEL_ENDINGS = ("png", "seg.png", "label.png", "mask.png")
# A sample that has such members, but no image and label, is left out and counted.
_PICTURES = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "webp",
        "tif",
        "tiff",
        "bmp",
        "gif",
        "ppm",
        "pgm",
        "jp2",
        "avif",
        "heic",
        "exr",
        "npy",
    ]
)
_LONGEST_KEY = 1024  # bytes: the index has one width for all
_SHOWN = 80  # characters of a refused name in a message
_MOST_KINDS = 20  # of ignored members that are told apart

Span = tuple[int, int]  # offset and size in bytes


@dataclass(frozen=True)
class Endings:
    """Ends of the names of images and of labels; the longest that fits counts."""

    image: tuple[str, ...] = IMAGE_ENDINGS
    label: tuple[str, ...] = LABEL_ENDINGS

    def split(self, name: str) -> tuple[str, str | None]:
        """Key of a member, and whether it is "image", "label" or "json"; None: something else.

        Only the ending is cut off, so that keys may hold dots: ``frame.0001`` of ``frame.0001.jpg``.
        """
        kinds = {"json": "json"} | dict.fromkeys(self.label, "label") | dict.fromkeys(self.image, "image")
        lower = name.lower()
        fitting = [ending for ending in kinds if lower.endswith(f".{ending}")]
        if not fitting:
            return split_name(name)[0], None
        longest = max(fitting, key=len)
        return name[: -len(longest) - 1], kinds[longest]


USUAL = Endings()


def endings_of(image: Sequence[str], label: Sequence[str]) -> Endings:
    """Endings that a user names, with or without their first dot; none: the usual ones.

    Raises:
        UserError: an empty ending, or one for both.
    """
    images, labels = ([each.lower().removeprefix(".") for each in given] for given in (image, label))
    if not all((*images, *labels)):
        raise UserError("an ending is such as jpg or seg.png, got an empty one; write it")
    images, labels = images or list(IMAGE_ENDINGS), labels or list(LABEL_ENDINGS)
    images = [each for each in images if image or each not in labels]
    labels = [each for each in labels if label or each not in images]
    if both := set(images) & set(labels):
        raise UserError(f"an ending is of images or of labels, got .{min(both)} for both; change one")
    return Endings(tuple(images), tuple(labels))


@dataclass
class Group:
    """Adjacent members of one key."""

    key: str
    spans: dict[str, Span] = field(default_factory=dict)
    fault: SampleError | None = None

    @property
    def missing(self) -> list[str]:
        """Which of image and label it lacks."""
        return [kind for kind in ("image", "label") if kind not in self.spans]


class _Named(NamedTuple):
    member: Member
    key: str
    kind: str | None  # None: a picture of no known kind


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member, cut at the first dot of its last part, as WebDataset does."""
    folder, base = os.path.split(name)
    stem, _, extension = base.partition(".")
    return os.path.join(folder, stem), extension


def groups(path: Path, where: str, endings: Endings, ignored: Counter[str]) -> Iterator[Group]:
    """The samples of a tar in their order, complete or not.

    Args:
        path: the tar.
        where: "<domain>/<shard>", the beginning of messages.
        endings: what images and labels are called.
        ignored: counts members that are not part of a sample, by their extension.

    Raises:
        SampleError: the tar breaks off; what came before has been given.
    """
    found, broken = _members(path, where)
    group: Group | None = None
    for named in _named(found, endings, ignored):
        if group is None or named.key != group.key:
            if group is not None:
                yield group
            group = Group(named.key)
        _add(group, named, where)
    if group is not None and (broken is None or not group.missing):
        yield group  # what is incomplete was cut off: the error names the place
    if broken is not None:
        raise broken


def _members(path: Path, where: str) -> tuple[list[Member], SampleError | None]:
    """The members of a tar but folders, and what broke it off."""
    found: list[Member] = []
    try:
        found.extend(member for member in members(path, where) if not member.folder)
    except SampleError as error:
        return found, error
    return found, None


def _named(found: list[Member], endings: Endings, ignored: Counter[str]) -> Iterator[_Named]:
    """Members with key and kind, without those that are not part of a sample.

    ``a.depth.png`` is a member of sample ``a`` that nothing here needs, ``frame.0001.png`` the label of
    ``frame.0001``: what a key with a dot means depends on which of the two has image and label.
    """
    split = [endings.split(member.name) for member in found]
    kinds: dict[str, set[str]] = {}
    for key, kind in split:
        if kind is not None:
            kinds.setdefault(key, set()).add(kind)
    complete = {key for key, has in kinds.items() if has >= {"image", "label"}}
    for member, (key, kind) in zip(found, split, strict=True):
        short, extension = split_name(member.name)
        extra = key not in complete and short in complete and short != key
        if is_clutter(member.name):
            _count(ignored, "clutter")
        elif kind is not None and not extra:
            yield _Named(member, key, kind)
        elif short in kinds or extension.lower().split(".")[-1] not in _PICTURES:
            _count(ignored, extension.lower())
        else:
            yield _Named(member, member.name.rpartition(".")[0], None)


def _count(ignored: Counter[str], extension: str) -> None:
    count_kind(ignored, printable(extension)[:16] or "none", 1)


def count_kind(ignored: Counter[str], kind: str, number: int) -> None:
    """Count members of a kind, with all others where there are many kinds already."""
    ignored[kind if kind in ignored or len(ignored) < _MOST_KINDS else "others"] += number


def _add(group: Group, named: _Named, where: str) -> None:
    member, kind = named.member, named.kind
    here = f"{where} sample {printable(group.key)}"
    problem = _name_problem(member.name, group.key)
    fault = None
    if problem is not None:
        shown = ascii(member.name)[:_SHOWN]
        fault = SampleError(where, "name", f"the member name {shown} {problem}; rename it")
    elif not member.plain:
        fault = SampleError(where, "member", f"{member.name!r} is not a regular file; store regular files")
    elif kind in group.spans:
        fault = SampleError(
            here, "repeated", f"two {kind} members; keep one, or name the ending of the {kind}"
        )
    group.fault = group.fault or fault
    if kind is not None:
        group.spans[kind] = (member.offset, member.size)


def _name_problem(name: str, key: str) -> str | None:
    """Why a member name is refused. It would never be opened here, but keys end up in lists of others."""
    try:
        length = len(key.encode("utf-8"))
    except UnicodeEncodeError:
        return "is not UTF-8"
    if length > _LONGEST_KEY:
        return f"is longer than {_LONGEST_KEY} bytes"
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name):
        return "has control characters"
    if name.startswith("/") or ".." in name.split("/"):
        return "leads out of its folder"
    return None
