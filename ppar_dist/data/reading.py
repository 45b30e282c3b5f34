"""Single samples: read from their shard, decoded, checked, and resized or augmented.

Nothing in a shard is trusted. A bad sample is left out of an evaluation. In training it is replaced by the
next one of its domain's sequence and travels along as a ``BadSample``: batches stay full, ranks even, and
what is trained on is a function of position and shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ppar_dist.data.colours import Colours
from ppar_dist.data.order import Order
from ppar_dist.data.quarantine import BadSample
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import (
    LabelArray,
    SampleError,
    check_label,
    check_sizes,
    decode_rgb,
    label_ids,
    open_image,
    open_label,
)
from ppar_dist.data.transforms import EvalTransform, TrainTransform

ATTEMPTS = 16  # samples tried for one position


class Decoded(NamedTuple):
    """A decoded sample; the image may be smaller than the label by 2, 4 or 8 (see ``decode_pixels``)."""

    image: Tensor  # uint8 (3, H', W')
    label: LabelArray  # (H, W) uint8
    key: str


def read_sample(index: DomainIndex, sample: int, min_side: int | None = None) -> Decoded:
    """Read, decode and check one sample.

    Raises:
        SampleError: unreadable image or label, sizes that differ, an illegal label id; the message
            names shard and key.
    """
    raw = index.read(sample)
    image, label = open_image(raw.image, raw.where), open_label(raw.label, raw.where)
    check_sizes(image, label, raw.where)
    ids = label_ids(label, raw.where)
    check_label(ids, len(index.classes), raw.where)
    return Decoded(decode_rgb(raw.image, image, raw.where, min_side), ids, raw.key)


class TrainSample(NamedTuple):
    """One augmented sample for training but for its colours, and the bad ones that it replaces."""

    position: int
    domain: int  # number of the source domain
    sample: int  # number within the domain
    key: str
    image: Tensor  # uint8 (3, H, W)
    label: Tensor  # uint8 (H, W)
    colours: Colours  # of the image, still to be applied
    bad: tuple[BadSample, ...]


@dataclass(frozen=True)
class SampleReader:
    """Reads what stands at a position of the training order."""

    order: Order
    indexes: Sequence[DomainIndex]
    transform: TrainTransform

    def needs(self, positions: range) -> Iterator[tuple[DomainIndex, int]]:
        """The samples at some positions, by domain and number, if none of them is bad."""
        for position in positions:
            address = self.order.locate(position)
            yield self.indexes[address.domain], address.sample

    def read(self, position: int) -> TrainSample:
        """The augmented sample of a position, or the first good one of its replacements.

        Raises:
            SampleError: ``ATTEMPTS`` bad samples in a row.
        """
        bad: list[BadSample] = []
        for attempt in range(ATTEMPTS):
            domain, _, sample, rare = self.order.locate(position, attempt)
            index = self.indexes[domain]
            try:
                found = read_sample(index, sample, self.transform.min_side)
            except SampleError as error:
                shard, key = index.names(sample)
                bad.append(BadSample(position, domain, sample, shard, key, error.reason, error.detail))
                continue
            crop = self.transform(found.image, found.label, position, rare, domain)
            return TrainSample(position, domain, sample, found.key, *crop, tuple(bad))
        raise _exhausted(self.indexes[bad[0].domain].name, bad)


def _exhausted(domain: str, bad: list[BadSample]) -> SampleError:
    counts = ", ".join(f"{n} {reason}" for reason, n in Counter(each.reason for each in bad).most_common())
    last = bad[-1]
    detail = (
        f"all {len(bad)} samples tried for position {last.position} are bad ({counts}; the last: "
        f"{last.shard} sample {last.key}: {last.detail}); repair the shards and index them again"
    )
    return SampleError(f"domain {domain}", "exhausted", detail)


class EvalSample(NamedTuple):
    """One sample for evaluation: the image resized, the label as stored."""

    image: Tensor  # uint8 (3, h, w)
    label: Tensor  # uint8 (H, W)
    key: str
    sample: int


def eval_samples(
    index: DomainIndex,
    start: int,
    stop: int,
    size: int,
    skipped: Callable[[int, SampleError], None] | None = None,
) -> Iterator[EvalSample]:
    """Samples [start, stop) of a domain in their order, images resized to ``size`` (shorter side).

    A bad sample raises its SampleError; with ``skipped`` it is left out, and its number and error go there.
    """
    resize = EvalTransform(size)
    for sample in range(start, stop):
        try:
            decoded = read_sample(index, sample)
        except SampleError as error:
            if skipped is None:
                raise
            skipped(sample, error)
            continue
        label = torch.from_numpy(decoded.label.copy())
        yield EvalSample(resize(decoded.image), label, decoded.key, sample)
