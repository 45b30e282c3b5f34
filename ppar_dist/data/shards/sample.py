"""One sample: its raw bytes, how they are decoded, and what makes it a bad one.

Nothing in a shard is trusted: images are opened as JPEG or PNG only, a label is a PNG of one channel with
train ids below the number of classes, or 255, and sizes are bounded before anything is read or decoded.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from ppar_dist import pictures
from ppar_dist.class_sets import IGNORE_INDEX
from ppar_dist.errors import DataError
from ppar_dist.pictures import PictureError
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
    "image_depth",  # more than 8 bits a channel
    "label_unreadable",
    "label_mode",  # not one channel
    "label_id",  # neither a train id nor 255
    "size_mismatch",  # of image and label
    "json",  # the .json member is not a JSON object
    "exhausted",  # too many bad samples in a row for one position
)

LabelArray = npt.NDArray[np.uint8]

MAX_MEMBER = 256 << 20  # bytes of a member; larger ones are never read

_IMAGES = ("JPEG", "PNG")
# Reason of a PictureError → of the sample.
_REASONS = {
    "unreadable": "{}_unreadable",
    "too_large": "too_large",
    "pages": "{}_unreadable",
    "depth": "image_depth",
    "mode": "label_mode",
}
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
    image: bytes  # JPEG or PNG
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
    """The JPEG or PNG with its header read and its pixels not yet decoded."""
    check_member("image", len(raw), where)
    try:
        image = pictures.open_picture(raw, _IMAGES)
    except PictureError as error:
        raise bad_picture("image", error, where) from None
    if pictures.is_deep(image):
        detail = "an image has 8 bits a channel, got more; `ppar-dist prepare` scales them (--range)"
        raise SampleError(where, "image_depth", detail)
    return image


def open_label(raw: bytes, where: str) -> Image.Image:
    """The label PNG with its header read and its pixels not yet decoded."""
    check_member("label", len(raw), where)
    try:
        return pictures.open_label(raw)
    except PictureError as error:
        raise bad_picture("label", error, where) from None


def decode_pixels(image: Image.Image, where: str, min_side: int | None = None) -> Image.Image:
    """Decode an opened image to an upright RGB picture.

    With ``min_side`` the decoder of a JPEG may scale by 1/2, 1/4 or 1/8 in the DCT domain, as long as neither
    side falls below it. The factor depends on the image size alone, hence the same pixels each time.
    """
    if min_side is not None:
        image.draft(None, (min_side, min_side))
    try:
        return pictures.photo_rgb(image)
    except PictureError as error:
        raise bad_picture("image", error, where) from None


def decode_rgb(raw: bytes, image: Image.Image, where: str, min_side: int | None = None) -> Tensor:
    """Decode an image to uint8 (3, H, W): the pixels of ``decode_pixels``, at full size without its copies
    and like it channels last in memory.

    ``image`` is ``raw`` opened by ``open_image``.
    """
    import torch  # late, with torchvision: who indexes or inspects shards makes no tensors
    from torchvision.io import ImageReadMode, decode_jpeg, decode_png

    is_png = image.format == "PNG"
    scaled = min_side is not None and not is_png and min(image.size) >= 2 * min_side
    if scaled or image.mode != "RGB" or pictures.orientation(image) != 1:
        pixels = np.array(decode_pixels(image, where, min_side))
        return torch.from_numpy(pixels).permute(2, 0, 1)
    try:
        buffer = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        decode = decode_png if is_png else decode_jpeg
        decoded: Tensor = decode(buffer, mode=ImageReadMode.RGB)
        return decoded
    except RuntimeError as error:
        detail = f"the image is cut off or corrupt ({one_line(error)}); replace it"
        raise SampleError(where, "image_unreadable", detail) from None


def label_ids(image: Image.Image, where: str) -> LabelArray:
    """Decode a label opened by ``open_label`` to train ids, (H, W) uint8. They are not checked here.

    Raises:
        SampleError: it is cut off, or holds an id above 255.
    """
    try:
        ids = pictures.label_ids(image)
    except PictureError as error:
        raise bad_picture("label", error, where) from None
    if (most := int(ids.max(initial=0)) if ids.dtype != np.uint8 else 0) > IGNORE_INDEX:
        raise SampleError(where, "label_id", f"label id {most} of a 16-bit PNG is above {IGNORE_INDEX}")
    return ids.astype(np.uint8, copy=False)


def decode_label(raw: bytes, where: str) -> LabelArray:
    """Open and decode a label PNG: ``label_ids`` of ``open_label``."""
    return label_ids(open_label(raw, where), where)


def encode_label(ids: LabelArray) -> bytes:
    """A PNG of ids (H, W) that decodes fast: its rows are not filtered, which suits photos.

    `pictures.label_ids` decodes it ten times as fast as one with filters, other readers twice.
    """
    height, width = ids.shape
    rows = np.zeros((height, 1 + width), np.uint8)  # each behind the number of its filter: 0, none
    rows[:, 1:] = ids
    header = struct.pack(">IIBBBBB", width, height, 8, *(0, 0, 0, 0))  # grey, not interlaced
    pixels = zlib.compress(rows.tobytes())
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*each) for each in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


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


def check_sizes(image: Image.Image, label: Image.Image, where: str) -> None:
    """Raises SampleError when an opened image, upright, and its label differ in size."""
    width, height = pictures.photo_size(image)
    if (width, height) != label.size:
        turned = " upright" * (pictures.orientation(image) != 1)
        raise SampleError(
            where,
            "size_mismatch",
            f"image is{turned} {width}x{height} but label is {label.width}x{label.height} (width x height); "
            "prepare the pair at one size",
        )


def _refuse_id(found: int, num_classes: int, where: str) -> None:
    raise SampleError(
        where,
        "label_id",
        f"label id {found} is out of range: train ids are 0..{num_classes - 1} or {IGNORE_INDEX}; "
        "map the labels with `ppar-dist prepare`",
    )


def bad_picture(kind: str, error: PictureError, where: str) -> SampleError:
    """The sample's error for an error of its image or label."""
    reason = _REASONS[error.reason]
    return SampleError(where, reason.format(kind), f"the {kind} is {error}")
