"""A pair of files as it goes into a shard."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from ppar_dist.data.prepare.checking import AS_IT_CAME, how_stored
from ppar_dist.data.prepare.legend import Decoder, unusable
from ppar_dist.data.prepare.source import Pair
from ppar_dist.data.shards.manifest import AS_THEY_CAME
from ppar_dist.data.shards.sample import encode_label
from ppar_dist.data.shards.writer import ShardSample, safe_key
from ppar_dist.pictures import PictureError, Span, open_picture, photo_rgb


@dataclass(frozen=True)
class Encoder:
    """Turns a pair of files, checked before, into a shard sample.

    Args:
        dataset: its name, for the sample's JSON.
        decode: the data set's labels.
        span: of ``--range``.
        jpeg: quality at which images that are not JPEG become that; None stores them as they came.
    """

    dataset: str
    decode: Decoder
    span: Span | None
    jpeg: int | None

    def __call__(self, pair: Pair) -> ShardSample:
        """The sample of a pair."""
        label = encode_label(self.decode(pair.label))
        metadata = {"dataset": self.dataset, "file": pair.image.name}
        return ShardSample(safe_key(pair.key), self._image(pair.image), label, metadata)

    def _image(self, path: Path) -> bytes:
        raw = path.read_bytes()
        try:
            with open_picture(raw) as image:
                if how_stored(image, self.jpeg is not None) == AS_IT_CAME:
                    return raw
                rgb, packed = photo_rgb(image, self.span), io.BytesIO()
        except PictureError as error:
            raise unusable(path, error) from None
        if self.jpeg is not None:
            # Colour at full resolution: thin poles and signs keep theirs.
            rgb.save(packed, "JPEG", quality=self.jpeg, subsampling=0)
        else:
            rgb.save(packed, "PNG")
        return packed.getvalue()


def how_encoded(jpeg: int | None, encoded: int, total: int) -> str:
    """How so many images of a domain are stored, for its file."""
    form = "PNG of 8 bits" if jpeg is None else f"JPEG of quality {jpeg}"
    return f"{encoded} of {total} encoded as {form}" if encoded else AS_THEY_CAME
