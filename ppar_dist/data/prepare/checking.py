"""Every fault of a data set at once, before the work: what is wrong with which pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ppar_dist.data.prepare.legend import Decoder, unusable
from ppar_dist.data.prepare.source import Domains, Pair
from ppar_dist.data.shards.jpeg import JPEG_FORMATS, check_jpeg
from ppar_dist.data.shards.writer import safe_key
from ppar_dist.errors import DataError
from ppar_dist.pictures import (
    UNREADABLE,
    PictureError,
    Span,
    is_deep,
    open_picture,
    photo_rgb,
    photo_size,
)
from ppar_dist.text import one_line, some

AS_IT_CAME, ENCODED = "as it came", "encoded again"
_NO_LABEL = "no_label"
_NAMED = 3  # images without a label that a message names
_LISTED = 100  # bad pairs that a message lists; the domain's file lists all


class BadPair(NamedTuple):
    """A pair that cannot be used."""

    key: str
    reason: str
    detail: str


def how_stored(image: Image.Image, jpeg: bool) -> str:
    """Whether an opened image goes into shards as it came; with ``jpeg`` only JPEG does."""
    same = image.format in JPEG_FORMATS or (image.format == "PNG" and not jpeg)
    return AS_IT_CAME if same and not is_deep(image) else ENCODED


@dataclass(frozen=True)
class PairCheck:
    """Checks pairs of one data set: files, sizes, readability and label values.

    Args:
        decode: the data set's labels.
        span: of ``--range``.
        jpeg: whether images that are not JPEG will become that.
    """

    decode: Decoder
    span: Span | None = None
    jpeg: bool = False

    def __call__(self, pair: Pair) -> BadPair | str:
        """What is wrong with a pair, or how its image will be stored: ``AS_IT_CAME`` or ``ENCODED``."""
        if not pair.image.is_file():
            return BadPair(pair.key, "no_image", f"no file {pair.image}")
        if not pair.label.is_file():
            return BadPair(pair.key, _NO_LABEL, f"no file {pair.label}")
        try:
            return self._stored(pair)
        except PictureError as error:
            return BadPair(pair.key, f"image_{error.reason}", str(unusable(pair.image, error)))
        except DataError as error:
            return BadPair(pair.key, "label", str(error))

    def _stored(self, pair: Pair) -> BadPair | str:
        with open_picture(pair.image) as image:
            size, stored = photo_size(image), how_stored(image, self.jpeg)
            label = self.decode(pair.label)  # (H, W)
            if size != (label.shape[1], label.shape[0]):
                found = f"image is {size[0]}x{size[1]} but label is {label.shape[1]}x{label.shape[0]}"
                return BadPair(pair.key, "size_mismatch", f"{found} (width x height)")
            self._read(pair.image, image)
        return stored

    def _read(self, path: Path, image: Image.Image) -> None:
        """Read the image in the cheapest way that finds it cut off or corrupt."""
        if image.format == "PNG" and not is_deep(image):
            try:
                image.verify()  # checksums of all its parts, without decoding
            except UNREADABLE as error:
                raise PictureError("unreadable", f"cut off or corrupt ({one_line(error)})") from None
        elif image.format in JPEG_FORMATS:
            check_jpeg(path.read_bytes(), image)
        else:
            photo_rgb(image, self.span)


def report(domain: str, bad: Sequence[BadPair], total: int) -> list[str]:
    """Every bad pair of a domain with its reason, images without a label together."""
    unlabelled = [each.key for each in bad if each.reason == _NO_LABEL]
    others = [each for each in bad if each.reason != _NO_LABEL]
    lines = []
    if unlabelled:
        more = ", …" * (len(unlabelled) > _NAMED)
        first = next(each for each in bad if each.reason == _NO_LABEL)
        names = ", ".join(unlabelled[:_NAMED]) + more
        lines.append(f"{domain}: {len(unlabelled)} of {total} images have no label: {names} ({first.detail})")
    lines += [f"{domain}: {each.key}: {each.detail}" for each in others[:_LISTED]]
    if len(others) > _LISTED:
        lines.append(f"{domain}: and {len(others) - _LISTED} more bad pairs")
    return lines


def pictures_passed_over(paths: Sequence[Path], root: Path) -> list[str]:
    """A line about pictures that belong to no pair; none where there are none."""
    names = some([str(path.relative_to(root)) for path in paths])
    told = f"passed over {len(paths)} pictures that belong to no pair, by name or ending: {names}"
    return [told] * bool(paths)


def notes(domains: Domains, exclude: frozenset[str]) -> list[str]:
    """What the names of pairs suggest was not meant: one label for many images, a stem that excludes many."""
    pairs = [pair for each in domains.values() for pair in each]
    count = Counter(pair.label for pair in pairs)
    shared = [pair.key for pair in pairs if count[pair.label] > 1]
    lines = [f"{len(shared)} images share a label with another: {some(shared)}"] * bool(shared)
    for name in sorted(exclude):
        named = [pair.key for pair in pairs if name in (pair.key, pair.image.stem)]
        if len(named) > 1:
            lines.append(f"--exclude {name} leaves out {len(named)} samples: {some(named)}")
    return lines


def repeated_keys(pairs: Iterable[Pair]) -> dict[str, BadPair]:
    """Pairs of a domain whose keys are those of others, by the name that they have in their data set."""
    named: dict[str, list[Pair]] = {}
    for pair in pairs:
        named.setdefault(safe_key(pair.key), []).append(pair)
    return {
        pair.key: BadPair(
            pair.key, "duplicate_key", f"key {key} is also that of {others[0].image}; rename a file"
        )
        for key, members in named.items()
        for pair in members
        if (others := [each for each in members if each is not pair])
    }


def by_reason(bad: Iterable[BadPair]) -> dict[str, list[str]]:
    """Keys of bad pairs by reason."""
    found: dict[str, list[str]] = {}
    for each in bad:
        found.setdefault(each.reason, []).append(each.key)
    return found
