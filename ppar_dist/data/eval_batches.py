"""Whole images for an evaluation, in batches of one size, made by loader workers.

A domain's samples are cut into blocks of ``batch`` consecutive ones, and a block into batches of one size. So
which images the model sees together is a function of the domain and ``batch``, whatever the number of ranks
and workers: ranks share out blocks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ppar_dist.data.prefetch import Needs, ahead, threads_for
from ppar_dist.data.reading import read_sample
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import SampleError
from ppar_dist.data.workers import LoaderWorkers

_FEWEST = 8  # blocks: for fewer, starting processes takes longer than reading


class EvalBatch(NamedTuple):
    """B images of one size, seen at S scales."""

    images: tuple[Tensor, ...]  # S of uint8 (B, 3, h, w)
    labels: Tensor  # uint8 (B, H, W)
    keys: list[str]
    samples: list[int]  # numbers within the domain


class EvalBlock(NamedTuple):
    """The batches of a block, and its samples that cannot be used."""

    batches: list[EvalBatch]
    bad: list[tuple[int, SampleError]]


@dataclass(frozen=True)
class EvalLoading:
    """How samples are loaded.

    Args:
        sizes: from the height and width of an image to those at which it is seen, one for each scale, and
            that of its label.
        batch: samples of a block.
        workers: loader processes; 0: this one.
        rank: of ``ranks``, which share out the blocks.
        ranks: how many take part.
    """

    sizes: Callable[[int, int], tuple[Sequence[tuple[int, int]], tuple[int, int]]]
    batch: int = 1
    workers: int = 0
    rank: int = 0
    ranks: int = 1

    def blocks(self, index: DomainIndex, samples: range) -> Generator[EvalBlock, None, None]:
        """This rank's blocks of a domain's ``samples``, in order; to be closed by who leaves early.

        Raises:
            WorkerDied: a loader worker was killed.
        """
        cut = [samples[at : at + self.batch] for at in range(0, len(samples), self.batch)]
        mine = cut[len(cut) * self.rank // self.ranks : len(cut) * (self.rank + 1) // self.ranks]
        workers = min(self.workers, len(mine) // _FEWEST)
        loaded = LoaderWorkers(workers, self.rank).iterate(_Blocks(index, mine, self.sizes))
        with contextlib.closing(loaded):
            yield from loaded


class _Blocks(IterableDataset[EvalBlock]):
    """The blocks that a loader worker makes: every n-th, as they are received in turn."""

    def __init__(
        self,
        index: DomainIndex,
        blocks: Sequence[range],
        sizes: Callable[[int, int], tuple[Sequence[tuple[int, int]], tuple[int, int]]],
    ) -> None:
        self.index, self.blocks, self.sizes = index, blocks, sizes

    def __iter__(self) -> Iterator[EvalBlock]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        needs: Needs[range] = lambda samples: ((self.index, sample) for sample in samples)  # noqa: E731
        for samples in ahead(self.blocks[first::step], needs, threads_for([self.index])):
            yield self._read(samples)

    def _read(self, samples: range) -> EvalBlock:
        bad: list[tuple[int, SampleError]] = []
        by_size: dict[tuple[int, ...], list[EvalBatch]] = {}
        for number in samples:
            try:
                image, ids, key = read_sample(self.index, number)
            except SampleError as error:
                bad.append((number, error))
                continue
            sizes, label_size = self.sizes(*ids.shape)
            images = tuple(_resized(image, size) for size in sizes)
            label = _resized_label(torch.from_numpy(ids.copy()), label_size)
            by_size.setdefault(tuple(ids.shape), []).append(EvalBatch(images, label, [key], [number]))
        return EvalBlock([_joined(batches) for batches in by_size.values()], bad)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (1, 3, h, w) of an image (3, H, W); the rule of ``EvalTransform``."""
    picture: Tensor = F.resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return picture[None]


def _resized_label(label: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (1, h, w) of a label (H, W), by the pixel nearest."""
    ids: Tensor = F.resize(label[None], list(size), interpolation=InterpolationMode.NEAREST_EXACT)
    return ids


def _joined(batches: Sequence[EvalBatch]) -> EvalBatch:
    if len(batches) == 1:
        return batches[0]
    return EvalBatch(
        tuple(torch.cat(images) for images in zip(*(each.images for each in batches), strict=True)),
        torch.cat([each.labels for each in batches]),
        [key for each in batches for key in each.keys],
        [sample for each in batches for sample in each.samples],
    )
