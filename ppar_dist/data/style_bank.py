"""The bank of styles: colour statistics of some training images of each source, measured when a run starts.

It follows from the data and the seed alone, so no checkpoint holds it: a resume measures it again. Held-out
samples and targets are not looked at.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence

from ppar_dist.config.schema import Config
from ppar_dist.data.order import Permutation
from ppar_dist.data.reading import ATTEMPTS, read_sample
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import SampleError
from ppar_dist.data.sources import training_shares
from ppar_dist.data.style import Statistics, StyleBank, statistics
from ppar_dist.data.transforms import decoded_side
from ppar_dist.errors import DataError

_IMAGES = 64  # of a source
_IN_ALL = 1024  # of many sources

log = logging.getLogger(__name__)


def style_bank(
    cfg: Config, indexes: Sequence[DomainIndex], alive: Callable[[], None] = lambda: None
) -> StyleBank | None:
    """Measure the styles of a configuration's sources; None where ``augment.style_exchange`` is off.

    Args:
        cfg: sources, held-out part, seed and augmentation.
        indexes: the open sources.
        alive: called after each image.

    Raises:
        DataError: no image of a source can be read.
    """
    if not cfg.augment.style_exchange:
        return None
    count = max(1, min(_IMAGES, _IN_ALL // len(indexes)))
    side = decoded_side(cfg.augment, cfg.data)
    sources = []
    for index, share in zip(indexes, training_shares(cfg, indexes), strict=True):
        chosen = Permutation(share.size, _key(cfg.seed, index.name))
        found, bad = [], 0
        for slot in range(min(count, share.size)):
            samples = [chosen(number) for number in _places(slot, count, share.size)]
            style, failed = _first_good(index, samples, side)
            bad += failed
            found += [style] if style is not None else []
            alive()
        if not found:
            raise DataError(
                f"augment.style_exchange: no image chosen from domain {index.name} can be read, in {bad} "
                "tries; repair its shards and index them again"
            )
        if bad:
            log.warning(
                "style exchange: %d of the images chosen from %s cannot be read, others take their place: "
                "a run that has begun without such faults goes on with other styles",
                *(bad, index.name),
            )
        sources.append(tuple(found))
    return StyleBank(tuple(sources))


def _places(slot: int, count: int, size: int) -> list[int]:
    """Numbers of an image and of those that replace it: a bad one changes its own place alone."""
    step = count if count < size else 1
    return [(slot + attempt * step) % size for attempt in range(min(ATTEMPTS, size))]


def _first_good(index: DomainIndex, samples: list[int], min_side: int) -> tuple[Statistics | None, int]:
    """Statistics of the first sample that can be read, and how many cannot."""
    for bad, sample in enumerate(samples):
        try:
            return statistics(read_sample(index, sample, min_side).image), bad
        except SampleError:
            continue
    return None, len(samples)


def _key(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}/style".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")
