"""From positions to batches: what a rank trains on, in order, made by loader workers.

positions of this rank → micro-batches → per position: locate, read, decode, augment → one ``Batch`` each

Each worker makes every n-th micro-batch whole; they are received in turn, so the sequence does not
depend on the number of workers. Starting anywhere costs the same. Images travel as uint8, and their colours
are changed where they arrive (``Batch.pictures``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import webdataset
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ppar_dist.config.schema import Config
from ppar_dist.data.batches import batching, micro_batches
from ppar_dist.data.colours import Colours, recoloured
from ppar_dist.data.order import Order
from ppar_dist.data.prefetch import OrderToCome, ahead, threads_for
from ppar_dist.data.quarantine import BadSample
from ppar_dist.data.rare_classes import RareClasses
from ppar_dist.data.reading import SampleReader, TrainSample
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import SampleError
from ppar_dist.data.sources import training_shares
from ppar_dist.data.style import StyleBank
from ppar_dist.data.style_bank import style_bank
from ppar_dist.data.transforms import TrainTransform
from ppar_dist.data.workers import LoaderWorkers
from ppar_dist.storage.failures import StorageDenied, StorageUnavailable


@dataclass
class Batch:
    """A micro-batch of B samples in the order of their positions."""

    images: Tensor  # uint8 (B, 3, H, W), colours as stored; channels last in memory until ``to``
    labels: Tensor  # uint8 (B, H, W)
    domains: Tensor  # int64 (B,), number of the source domain
    positions: Tensor  # int64 (B,)
    samples: Tensor  # int64 (B,), sample number within its domain: of the replacement, where there was one
    attempts: Tensor  # int64 (B,), bad samples that each one stands for
    keys: list[str]
    colours: list[Colours]  # what is drawn for each image, and not yet done
    bad: list[BadSample] = field(default_factory=list)  # met while this batch was filled

    def __len__(self) -> int:
        return len(self.keys)

    def pictures(self) -> Tensor:
        """What is trained on: the images in the colours drawn for them, float32 (B, 3, H, W) of 0 to 255."""
        return recoloured(self.images, self.colours)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; from pinned memory the copy does not block.

        On a CPU contiguous; a GPU's images stay channels last, as its convolutions want them.
        """
        on_cpu = torch.device(device).type == "cpu"
        return self._each(
            lambda tensor: tensor.contiguous() if on_cpu else tensor.to(device, non_blocking=True)
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        tensors = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return Batch(**values | tensors)


def train_loader(
    cfg: Config,
    indexes: Sequence[DomainIndex],
    rank: int,
    world_size: int,
    start_position: int,
    stop_position: int,
    styles: StyleBank | None = None,
) -> Iterator[Batch]:
    """Micro-batches of a rank, in order, for the global batches from one position to another.

    ``styles`` are those of ``style_bank``; where they are needed and not given, they are measured here.

    Raises:
        UserError: the global batch does not divide among the ranks, there are more ranks than
            samples, or (SampleError, when its turn comes) a position found no good sample.
        StorageUnavailable: object storage does not answer.
        ValueError: the positions are not a whole number of global batches.
        WorkerDied: a loader worker was killed.
    """
    shares = training_shares(cfg, indexes)
    batching(cfg, world_size, sum(share.size for share in shares))  # refuses what the ranks cannot share
    reader = SampleReader(
        order=order_of(cfg, indexes),
        indexes=indexes,
        transform=TrainTransform(cfg.augment, cfg.data, cfg.seed, styles or style_bank(cfg, indexes)),
    )
    positions = _MicroBatches(cfg, start_position, stop_position, rank, world_size)
    pipeline = webdataset.DataPipeline(positions, functools.partial(_batches, reader))
    return _received(LoaderWorkers(cfg.data.workers, rank).iterate(pipeline))


def order_of(cfg: Config, indexes: Sequence[DomainIndex]) -> Order:
    """Which sample a configuration trains on at each position."""
    shares, rare = training_shares(cfg, indexes), None
    if cfg.data.rare_classes.enabled:
        rare = [
            RareClasses(index.name, index.counts[: share.size], cfg.data.rare_classes)
            for index, share in zip(indexes, shares, strict=True)
        ]
    return Order(shares, cfg.seed, cfg.data.block, cfg.data.window, rare)


class _MicroBatches(IterableDataset[range]):
    """The positions of each micro-batch of a rank that this worker makes."""

    def __init__(self, cfg: Config, start: int, stop: int, rank: int, world_size: int) -> None:
        size, micro = cfg.train.global_batch, batching(cfg, world_size).micro_batch
        self.ranges = (start, stop, size, micro, rank, world_size)
        next(micro_batches(*self.ranges), None)  # refuse a bad range here rather than in a worker

    def __iter__(self) -> Iterator[range]:
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for number, positions in enumerate(micro_batches(*self.ranges)):
            if number % workers == mine:
                yield positions


def _batches(reader: SampleReader, micro_batches: Iterable[range]) -> Iterator[Batch | Exception]:
    """Read micro-batches. An error ends the stream as a value: an exception raised in a loader worker would
    reach the trainer as text, traceback and all."""
    try:
        to_come = OrderToCome(reader.order, reader.indexes)
        for positions in ahead(micro_batches, reader.needs, threads_for(reader.indexes)):
            to_come.position = positions.start
            yield _collate([reader.read(position) for position in positions])
    except (SampleError, StorageDenied, StorageUnavailable) as error:
        yield error


def _collate(samples: Sequence[TrainSample]) -> Batch:
    return Batch(
        # Crops are channels last, as decoded: stacking them so is a plain copy, five times faster.
        images=torch.stack([each.image.permute(1, 2, 0) for each in samples]).permute(0, 3, 1, 2),
        labels=torch.stack([each.label for each in samples]),  # (B, H, W)
        domains=torch.tensor([each.domain for each in samples]),
        positions=torch.tensor([each.position for each in samples]),
        samples=torch.tensor([each.sample for each in samples]),
        attempts=torch.tensor([len(each.bad) for each in samples]),
        keys=[each.key for each in samples],
        colours=[each.colours for each in samples],
        bad=[bad for each in samples for bad in each.bad],
    )


def _received(loader: Generator[Batch | Exception, None, None]) -> Iterator[Batch]:
    """The batches of a loader; raises the error that ended it."""
    with contextlib.closing(loader):  # not kept alive by the traceback of an error
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            yield batch
