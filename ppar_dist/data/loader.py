"""From positions to batches: a webdataset pipeline over indexed shards, run by loader workers.

positions of this rank → locate → read (pread) → decode → augment → group into micro-batches

Each worker makes every n-th micro-batch whole; they are received in turn, so the sequence does not
depend on the number of workers. Starting anywhere costs the same. Tensors travel as uint8.

A sample that cannot be used is replaced by the next one of its domain's sequence and travels along as a
``BadSample``: batches stay full, ranks even, and what is trained on is a function of position and shards.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import webdataset
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ppar_dist.config.schema import Config
from ppar_dist.data.batches import batching, micro_batches
from ppar_dist.data.order import Order
from ppar_dist.data.quarantine import BadSample
from ppar_dist.data.reading import read_sample
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import (
    SampleError,
)
from ppar_dist.data.sources import training_shares
from ppar_dist.data.transforms import TrainTransform
from ppar_dist.data.workers import LoaderWorkers
from ppar_dist.data.workers import WorkerDied as WorkerDied

ATTEMPTS = 16  # samples tried for one position


@dataclass
class Batch:
    """A micro-batch of B samples in the order of their positions."""

    images: Tensor  # uint8 (B, 3, H, W); channels last in memory, as decoded, until ``to``
    labels: Tensor  # uint8 (B, H, W)
    domains: Tensor  # int64 (B,), number of the source domain
    positions: Tensor  # int64 (B,)
    samples: Tensor  # int64 (B,), sample number within its domain: of the replacement, where there was one
    attempts: Tensor  # int64 (B,), bad samples that each one stands for
    keys: list[str]
    bad: list[BadSample] = field(default_factory=list)  # met while this batch was filled

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device, contiguous; from pinned memory the copy does not block."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True).contiguous())

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        tensors = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return Batch(**values | tensors)


class _Item(NamedTuple):
    """What travels down the pipeline until it becomes part of a batch."""

    position: int
    last: bool  # of its micro-batch
    domain: int = 0
    sample: int = 0
    content: Any = None  # Decoded, then (image, label) tensors
    key: str = ""
    bad: tuple[BadSample, ...] = ()


def train_loader(
    cfg: Config,
    indexes: Sequence[DomainIndex],
    rank: int,
    world_size: int,
    start_position: int,
    stop_position: int,
) -> Iterator[Batch]:
    """Micro-batches of a rank, in order, for the global batches from one position to another.

    Raises:
        UserError: the global batch does not divide among the ranks, there are more ranks than
            samples, or (SampleError, when its turn comes) one position met ``ATTEMPTS`` bad samples in a row.
        ValueError: the positions are no whole number of global batches.
        WorkerDied: a loader worker was killed.
    """
    shares = training_shares(cfg, indexes)
    batching(cfg, world_size, sum(share.size for share in shares))  # refuses what the ranks cannot share
    reader = SampleReader(
        order=Order(shares, cfg.seed, cfg.data.block, cfg.data.window),
        indexes=indexes,
        transform=TrainTransform(cfg.augment, cfg.data, cfg.seed),
    )
    pipeline = webdataset.DataPipeline(
        _PositionStream(cfg, start_position, stop_position, rank, world_size),
        webdataset.map(reader.load),
        webdataset.map(reader.augment),
        _grouped,
    )
    return _received(LoaderWorkers(cfg.data.workers, rank).iterate(pipeline))


@dataclass(frozen=True)
class SampleReader:
    """The two reader between a position and its augmented sample."""

    order: Order
    indexes: Sequence[DomainIndex]
    transform: TrainTransform

    def load(self, item: _Item) -> _Item:
        """Find, read and decode the sample of a position, or the first good one of its replacements.

        Raises:
            SampleError: there was none in ``ATTEMPTS``.
        """
        bad: list[BadSample] = []
        for attempt in range(ATTEMPTS):
            domain, _, sample = self.order.locate(item.position, attempt)
            index = self.indexes[domain]
            try:
                content = read_sample(index, sample, self.transform.min_side)
            except SampleError as error:
                shard, key = index.names(sample)
                bad.append(BadSample(item.position, domain, sample, shard, key, error.reason, error.detail))
                continue
            return item._replace(
                domain=domain, sample=sample, content=content, key=content.key, bad=tuple(bad)
            )
        raise _exhausted(self.indexes[bad[0].domain].name, bad)

    def augment(self, item: _Item) -> _Item:
        """Decoded sample to (image, label) tensors."""
        return item._replace(content=self.transform(item.content.image, item.content.label, item.position))


def _exhausted(domain: str, bad: list[BadSample]) -> SampleError:
    counts = ", ".join(f"{n} {reason}" for reason, n in Counter(each.reason for each in bad).most_common())
    last = bad[-1]
    detail = (
        f"all {len(bad)} samples tried for position {last.position} are bad ({counts}; the last: "
        f"{last.shard} sample {last.key}: {last.detail}); repair the shards and index them again"
    )
    return SampleError(f"domain {domain}", "exhausted", detail)


class _PositionStream(IterableDataset[_Item]):
    """The positions of a rank, as far as they are this worker's."""

    def __init__(self, cfg: Config, start: int, stop: int, rank: int, world_size: int) -> None:
        size, micro = cfg.train.global_batch, batching(cfg, world_size).micro_batch
        self.ranges = (start, stop, size, micro, rank, world_size)
        next(micro_batches(*self.ranges), None)  # refuse a bad range here rather than in a worker

    def __iter__(self) -> Iterator[_Item]:
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for number, positions in enumerate(micro_batches(*self.ranges)):
            if number % workers == mine:
                for position in positions:
                    yield _Item(position, last=position == positions[-1])


def _grouped(items: Iterable[_Item]) -> Iterator[Batch | SampleError]:
    """Micro-batches. An error ends the stream as a value: an exception raised in a loader worker would
    reach the trainer as text, traceback and all."""
    group: list[_Item] = []
    try:
        for item in items:
            group.append(item)
            if item.last:
                yield _collate(group)
                group = []
    except SampleError as error:
        yield error


def _collate(group: list[_Item]) -> Batch:
    return Batch(
        # Decoders write channels last: stacking them so is a plain copy, five times faster.
        images=torch.stack([item.content[0].permute(1, 2, 0) for item in group]).permute(0, 3, 1, 2),
        labels=torch.stack([item.content[1] for item in group]),  # (B, H, W)
        domains=torch.tensor([item.domain for item in group]),
        positions=torch.tensor([item.position for item in group]),
        samples=torch.tensor([item.sample for item in group]),
        attempts=torch.tensor([len(item.bad) for item in group]),
        keys=[item.key for item in group],
        bad=[bad for item in group for bad in item.bad],
    )


def _received(loader: Generator[Batch | SampleError, None, None]) -> Iterator[Batch]:
    with contextlib.closing(loader):  # not kept alive by the traceback of an error
        for batch in loader:
            if isinstance(batch, SampleError):
                raise batch
            yield batch
