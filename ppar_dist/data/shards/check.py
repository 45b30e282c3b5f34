"""Check a tar shard: where the members of each sample are, and what is wrong with bad samples.

A shard may come from anywhere. Member names are compared, never opened as paths; those that would lead out
of a folder are bad. Members other than .jpg, .png and .json are never read: pickles stay bytes.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from ppar_dist.data.shards.sample import (
    SampleError,
    check_member,
    check_sizes,
    class_counts,
    decode_pixels,
    label_ids,
    open_image,
    open_label,
)
from ppar_dist.data.shards.tar import Member, members
from ppar_dist.text import printable

_KINDS = {"jpg": "image", "jpeg": "image", "png": "label", "json": "json"}
_LONGEST_KEY = 1024  # bytes: the index has one width for all
_SHOWN = 80  # characters of a refused name in a message
_SCATTERED = "scattered"
_MOST_KINDS = 20  # of ignored members that are told apart

Span = tuple[int, int]  # offset and size in bytes


class CheckedSample(NamedTuple):
    """One good sample: image and label can be decoded and agree in size, label ids are legal."""

    key: str
    image: Span
    label: Span
    json: Span  # (0, 0): the sample has none
    height: int
    width: int
    image_crc: int  # CRC-32 of the member
    label_crc: int
    counts: npt.NDArray[np.uint32]  # (K,) pixels per train id


class Fault(NamedTuple):
    """What is wrong with a sample, or with the shard from some byte on (then ``key`` is None)."""

    key: str | None
    error: SampleError


@dataclass
class _Group:
    """Adjacent members of one key."""

    key: str
    spans: dict[str, Span] = field(default_factory=dict)
    fault: SampleError | None = None

    @property
    def missing(self) -> list[str]:
        return [kind for kind in ("image", "label") if kind not in self.spans]


def check_shard(
    path: Path, num_classes: int, where: str, ignored: Counter[str] | None = None
) -> Iterator[CheckedSample | Fault]:
    """The samples of one shard, good and bad; every image and label is decoded and checked.

    Args:
        path: the tar.
        num_classes: K.
        where: "<domain>/<shard>", the beginning of messages.
        ignored: counts members that are not part of a sample, by their extension.
    """
    partial: dict[str, str] = {}  # keys without image or label so far: what is missing, or _SCATTERED
    seen: set[str] = set()
    try:
        with path.open("rb") as stream:
            for group in _groups(path, where, Counter() if ignored is None else ignored):
                yield from _judged(group, stream, num_classes, where, seen, partial)
    except OSError as error:
        detail = f"cannot read the shard: {error.strerror}"
        yield Fault(None, SampleError(where, "shard_unreadable", detail))
    except SampleError as error:
        yield Fault(None, error)
    for key, missing in partial.items():
        yield Fault(key, _partial(f"{where} sample {printable(key)}", missing))


def _judged(
    group: _Group,
    stream: BinaryIO,
    num_classes: int,
    where: str,
    seen: set[str],
    partial: dict[str, str],
) -> Iterator[CheckedSample | Fault]:
    """Check a group; an incomplete one waits in ``partial``, as the rest of its sample may still come."""
    here = f"{where} sample {printable(group.key)}"
    if group.fault is not None:
        yield Fault(group.key, group.fault)
        return
    if group.key in partial:
        partial[group.key] = _SCATTERED
    elif group.key in seen:
        yield Fault(
            group.key, repeated_key(group.key, here) if not group.missing else _partial(here, _SCATTERED)
        )
    elif group.missing:
        partial[group.key] = group.missing[0]
    else:
        try:
            yield _sample(group, stream, num_classes, here)
        except SampleError as error:
            yield Fault(group.key, error)
    seen.add(group.key)


def repeated_key(key: str, where: str) -> SampleError:
    """An earlier sample has the key already."""
    return SampleError(where, "duplicate_key", f"key {key!r} occurs twice; keys are unique, rename it")


def _partial(here: str, missing: str) -> SampleError:
    if missing == _SCATTERED:
        detail = "members of other samples are between its own; pack the files sorted by name"
        return SampleError(here, "not_adjacent", detail)
    detail = f"no {missing} member; store <key>.jpg and <key>.png side by side"
    return SampleError(here, "incomplete", detail)


def _sample(group: _Group, stream: BinaryIO, num_classes: int, here: str) -> CheckedSample:
    raw = {kind: _read(stream, group.spans[kind], kind, here) for kind in ("image", "label")}
    image, label = open_image(raw["image"], here), open_label(raw["label"], here)
    height, width = image.height, image.width
    check_sizes((height, width), (label.height, label.width), here)
    counts = class_counts(label_ids(label, here), num_classes, here)
    decode_pixels(image, here, min_side=1)  # at an eighth: all bytes are read, few pixels made
    return CheckedSample(
        group.key,
        group.spans["image"],
        group.spans["label"],
        group.spans.get("json", (0, 0)),
        height,
        width,
        zlib.crc32(raw["image"]),
        zlib.crc32(raw["label"]),
        counts,
    )


def _groups(path: Path, where: str, ignored: Counter[str]) -> Iterator[_Group]:
    """Adjacent members of one key, as WebDataset groups them."""
    group: _Group | None = None
    try:
        for member in members(path, where):
            kind = _kind(member, ignored)
            if kind is None:
                continue
            key = split_name(member.name)[0]
            if group is None or key != group.key:
                if group is not None:
                    yield group
                group = _Group(key)
            _add(group, kind, member, where)
    except SampleError:
        if group is not None and not group.missing:
            yield group  # what is incomplete was cut off: the error names the place
        raise
    if group is not None:
        yield group


def _add(group: _Group, kind: str, member: Member, where: str) -> None:
    here = f"{where} sample {printable(group.key)}"
    problem = _name_problem(member.name)
    fault = None
    if problem is not None:
        shown = ascii(member.name)[:_SHOWN]
        fault = SampleError(where, "name", f"the member name {shown} {problem}; rename it")
    elif not member.plain:
        fault = SampleError(where, "member", f"{member.name!r} is not a regular file; store regular files")
    elif kind in group.spans:
        fault = SampleError(here, "repeated", f"two {kind} members; keep one")
    group.fault = group.fault or fault
    group.spans[kind] = (member.offset, member.size)


def _kind(member: Member, ignored: Counter[str]) -> str | None:
    """image, label or json; None, and counted, for what is not a member of a sample."""
    if member.folder:
        return None
    extension = split_name(member.name)[1].lower()
    kind = _KINDS.get(extension)
    if kind is None:
        shown = printable(extension)[:16] or "none"
        ignored[shown if shown in ignored or len(ignored) < _MOST_KINDS else "others"] += 1
    return kind


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member, cut at the first dot of its last part, as WebDataset does."""
    folder, base = os.path.split(name)
    stem, _, extension = base.partition(".")
    return os.path.join(folder, stem), extension


def _name_problem(name: str) -> str | None:
    """Why a member name is refused. It would never be opened here, but keys end up in lists of others."""
    try:
        length = len(split_name(name)[0].encode("utf-8"))
    except UnicodeEncodeError:
        return "is not UTF-8"
    if os.path.basename(name).startswith("."):
        return "has no key before its extension"
    if length > _LONGEST_KEY:
        return f"is longer than {_LONGEST_KEY} bytes"
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name):
        return "has control characters"
    if name.startswith("/") or ".." in name.split("/"):
        return "leads out of its folder"
    return None


def _read(stream: BinaryIO, span: Span, kind: str, here: str) -> bytes:
    offset, size = span
    check_member(kind, size, here)
    stream.seek(offset)
    return stream.read(size)
