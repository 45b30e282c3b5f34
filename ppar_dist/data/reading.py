"""Read, decode and check single samples of a domain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

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
from ppar_dist.data.transforms import EvalTransform
from ppar_dist.data.workers import WorkerDied as WorkerDied


class EvalSample(NamedTuple):
    """One sample for evaluation: the image resized, the label as stored."""

    image: Tensor  # uint8 (3, h, w)
    label: Tensor  # uint8 (H, W)
    key: str
    sample: int


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
    check_sizes((image.height, image.width), (label.height, label.width), raw.where)
    ids = label_ids(label, raw.where)
    check_label(ids, len(index.classes), raw.where)
    return Decoded(decode_rgb(raw.image, image, raw.where, min_side), ids, raw.key)


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
