"""Check a tar shard: where the members of each sample are, and what is wrong with bad samples.

A shard may come from anywhere. Member names are compared, never opened as paths; those that would lead out
of a folder are bad. Members other than images, labels and .json are never read: pickles stay bytes. Dot names
and the like are clutter, and no samples.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ppar_dist.data.shards.grouping import USUAL, Endings, Group, Span, groups
from ppar_dist.data.shards.jpeg import JPEG_FORMATS, check_jpeg
from ppar_dist.data.shards.sample import (
    SampleError,
    bad_picture,
    check_member,
    check_sizes,
    class_counts,
    decode_pixels,
    label_ids,
    open_image,
    open_label,
)
from ppar_dist.pictures import PictureError, orientation
from ppar_dist.text import printable

_SCATTERED = "scattered"


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
    turned: bool  # by its EXIF orientation when it is read


class Fault(NamedTuple):
    """What is wrong with a sample, or with the shard from some byte on (then ``key`` is None)."""

    key: str | None
    error: SampleError


def check_shard(
    path: Path,
    num_classes: int,
    where: str,
    ignored: Counter[str] | None = None,
    endings: Endings = USUAL,
) -> Iterator[CheckedSample | Fault]:
    """The samples of one shard, good and bad; every image and label is decoded and checked.

    Args:
        path: the tar.
        num_classes: K.
        where: "<domain>/<shard>", the beginning of messages.
        ignored: counts members that are not part of a sample, by their extension.
        endings: what images and labels are called.
    """
    partial: dict[str, str] = {}  # keys without image or label so far: what is missing, or _SCATTERED
    seen: set[str] = set()
    try:
        with path.open("rb") as stream:
            for group in groups(path, where, endings, Counter() if ignored is None else ignored):
                yield from _judged(group, stream, num_classes, where, seen, partial)
    except OSError as error:
        detail = f"cannot read the shard: {error.strerror}"
        yield Fault(None, SampleError(where, "shard_unreadable", detail))
    except SampleError as error:
        yield Fault(None, error)
    for key, missing in partial.items():
        yield Fault(key, _partial(f"{where} sample {printable(key)}", missing))


def _judged(
    group: Group,
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
    detail = (
        f"no {missing} member; store <key>.jpg (or .image.png) and <key>.png side by side, or say how yours "
        f"end: --{missing}-ending"
    )
    return SampleError(here, "incomplete", detail)


def _sample(group: Group, stream: BinaryIO, num_classes: int, here: str) -> CheckedSample:
    raw = {kind: _read(stream, group.spans[kind], kind, here) for kind in ("image", "label")}
    image, label = open_image(raw["image"], here), open_label(raw["label"], here)
    check_sizes(image, label, here)
    width, height = label.size
    counts = class_counts(label_ids(label, here), num_classes, here)
    turned = orientation(image) != 1
    _check_pixels(raw["image"], image, here)
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
        turned,
    )


def _check_pixels(raw: bytes, image: Image.Image, here: str) -> None:
    """Raises SampleError where an image, opened from ``raw``, is cut off or damaged."""
    if image.format not in JPEG_FORMATS:
        decode_pixels(image, here)
        return
    try:
        check_jpeg(raw, image)
    except PictureError as error:
        raise bad_picture("image", error, here) from None


def _read(stream: BinaryIO, span: Span, kind: str, here: str) -> bytes:
    offset, size = span
    check_member(kind, size, here)
    stream.seek(offset)
    return stream.read(size)
