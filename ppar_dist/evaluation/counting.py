"""Confusion counts of whole images, batch by batch: this rank's share of a domain.

Counts of all ranks are summed: integers, so the sum is the same on any number of ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppar_dist.config.schema import Config
from ppar_dist.data.class_subset import ClassSubset
from ppar_dist.data.eval_batches import EvalBatch, EvalLoading
from ppar_dist.data.quarantine import FEW_SAMPLES
from ppar_dist.data.reading import EvalSample
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import SampleError
from ppar_dist.data.sources import holdout_range
from ppar_dist.errors import UserError
from ppar_dist.evaluation.confusion import ConfusionMatrix
from ppar_dist.evaluation.labelling import predict_labels
from ppar_dist.evaluation.protocol import Protocol, held_out_protocol
from ppar_dist.evaluation.views import predict_batch

_NAMED = 20  # samples left out of a domain that the log names; of more, only their number

log = logging.getLogger(__name__)


class HeldOut(NamedTuple):
    """What one rank, or the sum of all, found on the held-out part of M sources with K classes."""

    counts: Tensor  # (M, K, K) int64: rows are labels, columns predictions
    left_out: Tensor  # (M,) int64 samples that could not be used


def confusion(
    segmentor: nn.Module,
    samples: Any,
    num_classes: int,
    device: torch.device | str = "cpu",
    watch: Callable[[int, EvalSample, Tensor], None] | None = None,
) -> tuple[ConfusionMatrix, int]:
    """The confusion matrix over an iterable of EvalSample, one by one, and how many there were.

    ``watch(number, sample, predicted)`` sees each prediction on the device, for example to save it.
    """
    matrix = ConfusionMatrix(num_classes)
    count = 0
    for sample in samples:
        height, width = sample.label.shape
        predicted = predict_labels(segmentor, sample.image.to(device), (height, width))
        matrix.update(predicted, sample.label.to(device))
        if watch is not None:
            watch(count, sample, predicted)
        count += 1
    return matrix, count


def count_pairs(
    segmentor: nn.Module,
    index: DomainIndex,
    samples: range,
    protocol: Protocol,
    loading: EvalLoading,
    left_out: LeftOut,
    device: torch.device | str = "cpu",
    watch: Callable[[EvalBatch, Tensor], None] = lambda *_: None,
    subset: ClassSubset | None = None,
) -> tuple[ConfusionMatrix, int]:
    """The confusion matrix over this rank's share of a domain's ``samples``, and how many there were.

    ``watch(batch, predicted)`` sees each prediction, (B, H, W) uint8 on the device. ``subset``: the domain's
    classes among the model's, of whose ids the matrix and what is watched are; None: they are the same.
    """
    matrix, count = ConfusionMatrix(len(index.classes) if subset is None else subset.num_classes), 0
    blocks = loading.blocks(index, samples)
    with closing(blocks):
        for block in blocks:
            for number, error in block.bad:
                left_out(number, error)
            for loaded in block.batches:
                batch = loaded if subset is None else loaded._replace(labels=subset.model_ids(loaded.labels))
                images = [each.to(device, non_blocking=True) for each in batch.images]
                height, width = batch.labels.shape[1:]
                predicted = predict_batch(segmentor, images, (height, width), protocol)
                matrix.update(predicted, batch.labels.to(device, non_blocking=True))
                watch(batch, predicted)
                count += len(batch.keys)
    return matrix, count


def held_out(
    segmentor: nn.Module,
    config: Config,
    indexes: Sequence[DomainIndex],
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    alive: Callable[[], None] = lambda: None,
) -> HeldOut:
    """Confusion counts on the held-out part of each source, this rank's share of the samples.

    Summed over the ranks, the counts are those of a single rank: integers, so exactly. ``alive`` is called
    after each batch. Whether too many were left out is for the caller to ask, who knows the sum. Images are
    seen whole at ``data.size``, whatever the protocol of targets.
    """
    counts, left_out = [], []
    protocol = held_out_protocol(config)
    loading = loading_of(config, protocol, rank, world_size)
    for index in indexes:
        held, bad = holdout_range(index, config.data.holdout), LeftOut(index.name)
        watch = lambda *_: alive()  # noqa: E731
        matrix, _ = count_pairs(segmentor, index, held, protocol, loading, bad, device, watch)
        counts.append(matrix.counts)
        left_out.append(bad.count)
    return HeldOut(torch.stack(counts), torch.tensor(left_out))


def loading_of(config: Config, protocol: Protocol, rank: int, world_size: int) -> EvalLoading:
    """How a rank loads its share of a domain, seen under ``protocol``."""
    asked = config.evaluation
    workers = config.data.workers if asked.workers is None else asked.workers
    return EvalLoading(protocol.sizes, asked.batch, workers, rank, world_size)


class LeftOut:
    """Counts the samples of a domain that a pass over it leaves out, and names them in the log."""

    def __init__(self, domain: str, purpose: str = "evaluation") -> None:
        self.domain, self.purpose, self.count = domain, purpose, 0

    def __call__(self, sample: int, error: SampleError) -> None:
        """Leave out ``sample``."""
        self.count += 1
        if self.count <= _NAMED:
            log.warning("left out of the %s of %s (%s): %s", self.purpose, self.domain, error.reason, error)
        elif self.count == _NAMED + 1:
            log.warning(
                "left out of the %s of %s: more samples, which are counted", self.purpose, self.domain
            )


def refuse_too_many(
    domains: Sequence[str], left_out: Sequence[int], samples: Sequence[int], max_bad_ratio: float
) -> None:
    """Raises UserError where an evaluation leaves out more than ``max_bad_ratio`` of a domain's samples.

    As in training a domain counts as at least ``FEW_SAMPLES``.
    """
    problems = []
    for name, bad, size in zip(domains, left_out, samples, strict=True):
        allowed = max_bad_ratio * max(size, FEW_SAMPLES)
        if bad > allowed:
            problems.append(f"domain {name}: {bad} of {size} samples are bad, {allowed:.0f} may be left out")
    if problems:
        raise UserError(
            f"too much bad data for an evaluation (data.max_bad_ratio={max_bad_ratio:g} of a domain's "
            f"samples, counted as at least {FEW_SAMPLES}): {'; '.join(problems)}. The log names them; "
            "repair the shards and index them again, or raise data.max_bad_ratio"
        )
