"""How a step is cut: a global batch over ranks and micro-batches, positions over both. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ppar_dist.config.schema import Config
from ppar_dist.errors import ConfigError


@dataclass(frozen=True)
class Batching:
    """How a global batch is cut: over ranks, then over micro-batches."""

    global_batch: int
    local_batch: int
    micro_batch: int
    accumulation: int


def batching(config: Config, world_size: int, samples: int | None = None) -> Batching:
    """Derive local batch, micro-batch and accumulation for a number of ranks.

    ``samples`` are those to train on, where they are known: every rank needs one.

    ``train.micro_batch`` is what fits into memory: where it does not divide a rank's part evenly, the largest
    smaller number that does is taken, so that a run can go on at another number of ranks as it is.

    Raises:
        ConfigError: the global batch does not divide among the ranks, or there are fewer samples than ranks.
    """
    total = config.train.global_batch
    if total < world_size:
        raise ConfigError(
            f"every rank needs a sample per step: train.global_batch={total} on {world_size} ranks; "
            "use fewer ranks or raise train.global_batch"
        )
    if total % world_size:
        raise ConfigError(
            f"train.global_batch is a multiple of the number of ranks, got {total} on {world_size} ranks; "
            "change one of the two"
        )
    if samples is not None and samples < world_size:
        raise ConfigError(
            f"{world_size} ranks but only {samples} training samples; use at most {samples} ranks"
        )
    local = total // world_size
    most = min(config.train.micro_batch or local, local)
    micro = max(size for size in range(1, most + 1) if local % size == 0)
    return Batching(total, local, micro, local // micro)


def global_batch(step: int, size: int) -> range:
    """Positions of global batch ``step`` of ``size`` images."""
    return range(step * size, (step + 1) * size)


def rank_slice(step: int, size: int, rank: int, world_size: int, origin: int = 0) -> range:
    """The contiguous part of a global batch that belongs to a rank.

    Slices differ by one image at most, and not at all when ``size`` is a multiple of ``world_size``.
    ``origin`` is the position of batch 0: not 0 for a run resumed with another batch size.
    """
    first = origin + step * size
    return range(first + size * rank // world_size, first + size * (rank + 1) // world_size)


def micro_batches(
    start: int, stop: int, size: int, micro: int | None, rank: int, world_size: int
) -> Iterator[range]:
    """Micro-batches of a rank for the global batches that begin at ``start`` and end at ``stop``.

    Raises:
        ValueError: ``stop - start`` is not a multiple of the global batch ``size``.
    """
    if (stop - start) % size:
        raise ValueError(f"positions {start}..{stop} are not a whole number of global batches of {size}")
    for step in range((stop - start) // size):
        part = rank_slice(step, size, rank, world_size, origin=start)
        width = micro or max(len(part), 1)
        for first in range(part.start, part.stop, width):
            yield range(first, min(first + width, part.stop))
