"""One sample: its raw bytes, how they are decoded, and what makes it a bad one.

Nothing in a shard is trusted: images are opened as JPEG or PNG only, a label is an 8-bit
single-channel PNG of train ids below the number of classes, or 255, and sizes are bounded before anything
is read or decoded.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ppar_dist.class_sets import IGNORE_INDEX
from ppar_dist.errors import DataError
from ppar_dist.text import one_line, printable

if TYPE_CHECKING:
    from torch import Tensor

# Every reason a SampleError may give; metrics are labelled with these words.
REASONS = (
    "shard_missing",  # no such file
    "shard_unreadable",  # the file cannot be opened or read, or is not a regular file
    "shard_changed",  # its size or time differs from before
    "truncated",  # the shard ends too early
    "damaged",  # a malformed tar header, or other data where one should be
    "checksum",  # a member is not what was indexed
    "index",  # the index points outside its shards
    "incomplete",  # no image or no label
    "repeated",  # two images or two labels side by side under one key
    "not_adjacent",  # members of one key with others between
    "duplicate_key",  # an earlier sample has the same key
    "member",  # a link, device or sparse file
    "name",  # a member name that is not a safe relative path
    "empty",  # a member of zero bytes
    "too_large",  # a member or picture beyond all bounds
    "image_unreadable",
    "label_unreadable",
    "label_mode",  # not 8 bits, one channel
    "label_id",  # neither a train id nor 255
    "size_mismatch",  # of image and label
    "json",  # the .json member is not a JSON object
    "exhausted",  # too many bad samples in a row for one position
)

LabelArray = npt.NDArray[np.uint8]

MAX_MEMBER = 256 << 20  # bytes of a member; larger ones are never read
MAX_PIXELS = 89_478_485  # of a picture; more are never decoded (Pillow's bound, up to which it is silent)

# What Pillow's parsers raise for bytes that are not an image of the format, cut off, or malicious.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, OverflowError),
    *(struct.error, zlib.error, RuntimeError),
)
_LONGEST = 300  # characters of either half of a message: decoders may quote what they read


class SampleError(DataError):
    """A sample that cannot be used: ``where`` (shard and key) and ``reason`` (one of ``REASONS``).

    Where and detail are one printable line each, whatever names and decoders they come from.
    """

    def __init__(self, where: str, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        self.where = printable(where, _LONGEST)
        self.reason = reason
        self.detail = printable(detail, _LONGEST)
        super().__init__(f"{self.where}: {self.detail}")

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str, str]]:
        return SampleError, (self.where, self.reason, self.detail)


@dataclass(frozen=True)
class RawSample:
    """Undecoded members of one sample, and where they came from."""

    where: str  # "<domain>/<shard> sample <key>", for messages
    key: str
    image: bytes  # JPEG
    label: bytes  # PNG


def check_member(kind: str, size: int, where: str) -> None:
    """Raises SampleError when a member of ``size`` bytes is empty or too large to be read."""
    if size == 0:
        raise SampleError(where, "empty", f"the {kind} member has no bytes; replace it")
    if size > MAX_MEMBER:
        raise SampleError(
            where,
            "too_large",
            f"the {kind} member has {size} bytes, at most {MAX_MEMBER} are read; shrink it",
        )


def open_image(raw: bytes, where: str) -> Image.Image:
    """The JPEG with its header read and its pixels not yet decoded."""
    return _open(raw, "image", "JPEG", where)


def open_label(raw: bytes, where: str) -> Image.Image:
    """The label PNG with its header read and its pixels not yet decoded."""
    image = _open(raw, "label", "PNG", where)
    if image.mode not in ("L", "P"):
        raise SampleError(
            where,
            "label_mode",
            f"a label is an 8-bit single-channel PNG, got mode {image.mode}; convert it",
        )
    return image


def _open(raw: bytes, kind: str, form: str, where: str) -> Image.Image:
    check_member(kind, len(raw), where)
    try:
        image = Image.open(io.BytesIO(raw), formats=(form,))
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(kind, _said(error), where) from None
    except _UNREADABLE as error:
        raise SampleError(
            where, f"{kind}_unreadable", f"the {kind} is not a readable {form} ({_said(error)}); replace it"
        ) from None
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels(kind, f"{image.width}x{image.height}", where)
    return image


def decode_pixels(image: Image.Image, where: str, min_side: int | None = None) -> Image.Image:
    """Decode an opened JPEG to an RGB picture.

    With ``min_side`` the decoder may scale by 1/2, 1/4 or 1/8 in the DCT domain, as long as neither
    side falls below it. The factor depends on the image size alone, hence the same pixels each time.
    """
    try:
        if min_side is not None:
            image.draft(None, (min_side, min_side))
        return image.convert("RGB")
    except _UNREADABLE as error:
        raise _corrupt(where, error) from None


def decode_rgb(raw: bytes, image: Image.Image, where: str, min_side: int | None = None) -> Tensor:
    """Decode a JPEG to uint8 (3, H, W): the pixels of ``decode_pixels``, at full size without its copies
    and like it channels last in memory.

    ``image`` is ``raw`` opened by ``open_image``.
    """
    import torch  # late, with torchvision: who indexes or inspects shards makes no tensors
    from torchvision.io import ImageReadMode, decode_jpeg

    scaled = min_side is not None and min(image.size) >= 2 * min_side
    if scaled or image.mode != "RGB":
        pixels = np.array(decode_pixels(image, where, min_side))
        return torch.from_numpy(pixels).permute(2, 0, 1)
    try:
        jpeg = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        decoded: Tensor = decode_jpeg(jpeg, mode=ImageReadMode.RGB)
        return decoded
    except RuntimeError as error:
        raise _corrupt(where, error) from None


def label_ids(image: Image.Image, where: str) -> LabelArray:
    """Decode a label opened by ``open_label`` to train ids, (H, W) uint8. The ids are not checked here."""
    try:
        return np.asarray(image, dtype=np.uint8)
    except _UNREADABLE as error:
        detail = f"the label is not a readable PNG ({_said(error)}); replace it"
        raise SampleError(where, "label_unreadable", detail) from None


def decode_label(raw: bytes, where: str) -> LabelArray:
    """Open and decode a label PNG: ``label_ids`` of ``open_label``."""
    return label_ids(open_label(raw, where), where)


def class_counts(label: LabelArray, num_classes: int, where: str) -> npt.NDArray[np.uint32]:
    """Pixels per train id, (K,); pixels of ``IGNORE_INDEX`` are not counted.

    Raises:
        SampleError: a label id that is neither below K nor 255.
    """
    counts = np.bincount(label.ravel(), minlength=IGNORE_INDEX + 1)
    illegal = np.flatnonzero(counts[num_classes:IGNORE_INDEX])
    if illegal.size:
        _refuse_id(int(illegal[0]) + num_classes, num_classes, where)
    return counts[:num_classes].astype(np.uint32)


def check_label(label: LabelArray, num_classes: int, where: str) -> None:
    """Like ``class_counts`` without the counting: raises SampleError for an illegal id."""
    shifted = label + np.uint8(1)  # 255 wraps to 0: what is legal is 0..K now
    if int(shifted.max()) > num_classes:
        _refuse_id(int(label[shifted > num_classes].min()), num_classes, where)


def check_sizes(image: tuple[int, int], label: tuple[int, int], where: str) -> None:
    """Raises SampleError when image and label (height, width) differ."""
    if image != label:
        raise SampleError(
            where,
            "size_mismatch",
            f"image is {image[1]}x{image[0]} but label is {label[1]}x{label[0]} (width x height); "
            "prepare the pair at one size",
        )


def _refuse_id(found: int, num_classes: int, where: str) -> None:
    raise SampleError(
        where,
        "label_id",
        f"label id {found} is out of range: train ids are 0..{num_classes - 1} or {IGNORE_INDEX}; "
        "map the labels with `ppar-dist prepare`",
    )


def _said(error: Exception) -> str:
    """What a decoder said; Pillow names the buffer it could not identify, which tells a user nothing."""
    return "unknown format" if isinstance(error, UnidentifiedImageError) else one_line(error)


def _corrupt(where: str, error: Exception) -> SampleError:
    detail = f"the image is cut off or corrupt ({one_line(error)}); replace it"
    return SampleError(where, "image_unreadable", detail)


def _too_many_pixels(kind: str, found: str, where: str) -> SampleError:
    detail = f"the {kind} is too large ({found}), at most {MAX_PIXELS} pixels are decoded; shrink it"
    return SampleError(where, "too_large", detail)
