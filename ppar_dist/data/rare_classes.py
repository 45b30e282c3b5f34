"""Samples drawn for their rare classes: first a class, the rarer the likelier, then a sample that has it.

Rare-class sampling as in Hoyer et al., DAFormer (2022), section 3.3: with f_c the share of class c among the
labelled pixels of the training part, P(c) is proportional to exp((1 - f_c) / T). Both draws depend on a
number alone, so a position is still the whole state of the data.

Letters: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ppar_dist.config.data_section import RareClassConfig
from ppar_dist.errors import DataError

_UNIT = 1 << 64
_STRETCH = 1 << 14  # samples looked at together: they stay in the processor's cache


class RareClasses:
    """The samples of a domain by the classes that they have, and how likely each class is drawn.

    Memory: four bytes for each class of each sample.
    """

    def __init__(self, name: str, counts: npt.NDArray[np.uint32], config: RareClassConfig) -> None:
        """Look through a domain once.

        Args:
            name: of the domain, for messages.
            counts: (N, K) labelled pixels by sample and class, of the training part.
            config: temperature and the fewest pixels that count.

        Raises:
            DataError: no sample has as many pixels of any class.
        """
        pixels, self.samples = _look_through(counts, config.min_pixels)
        there = np.array([len(samples) > 0 for samples in self.samples])
        if not there.any():
            raise DataError(
                f"domain {name}: no sample has {config.min_pixels} pixels of a class; "
                "lower data.rare_classes.min_pixels"
            )
        rarity = (1.0 - pixels / pixels.sum()) / config.temperature
        weights = np.where(there, np.exp(rarity - rarity[there].max()), 0.0)
        self.probabilities = weights / weights.sum()  # (K,)
        self._until = np.cumsum(self.probabilities)
        self._last = int(np.flatnonzero(there)[-1])  # rounding may leave the sum below 1

    def draw(self, first: int, second: int) -> tuple[int, int]:
        """Sample and class that two uniform 64-bit numbers choose."""
        number = int(np.searchsorted(self._until, first / _UNIT, side="right"))
        number = min(number, self._last)
        samples = self.samples[number]
        return int(samples[len(samples) * second // _UNIT]), number


def _look_through(
    counts: npt.NDArray[np.uint32], min_pixels: int
) -> tuple[npt.NDArray[np.float64], list[npt.NDArray[np.uint32]]]:
    """Pixels of each class, and the samples that have enough of it."""
    classes = counts.shape[1]
    pixels, sizes = np.zeros(classes, np.uint64), np.zeros(classes, np.int64)
    for _, by_class in _stretches(counts):
        pixels += by_class.sum(axis=1, dtype=np.uint64)
        sizes += np.count_nonzero(by_class >= min_pixels, axis=1)
    found = [np.empty(size, np.uint32) for size in sizes]  # parts to be joined would take twice the memory
    ends = [0] * classes
    for start, by_class in _stretches(counts):
        for number in range(classes):
            samples = np.flatnonzero(by_class[number] >= min_pixels)
            begin, ends[number] = ends[number], ends[number] + len(samples)
            found[number][begin : ends[number]] = samples + start
    return pixels.astype(np.float64), found


def _stretches(counts: npt.NDArray[np.uint32]) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
    """The first sample of each stretch, and its counts by class (K, n): the file is read from end to end."""
    for start in range(0, len(counts), _STRETCH):
        yield start, np.ascontiguousarray(counts[start : start + _STRETCH].T)
