"""How the budget is cut: a global batch over ranks and micro-batches, a rate over the steps. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ppar_dist.config import Config, ConfigError, OptimConfig


@dataclass(frozen=True)
class Batching:
    """How a global batch is cut: over ranks, then over micro-batches."""

    global_batch: int
    local_batch: int
    micro_batch: int
    accumulation: int


def batching(config: Config, world_size: int) -> Batching:
    """Derive local batch, micro-batch and accumulation for a number of ranks.

    ``train.micro_batch`` is what fits into memory: where it does not divide a rank's part evenly, the largest
    smaller number that does is taken, so that a run can go on at another number of ranks as it is.

    Raises:
        ConfigError: the global batch does not divide among the ranks.
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
    local = total // world_size
    most = min(config.train.micro_batch or local, local)
    micro = max(size for size in range(1, most + 1) if local % size == 0)
    return Batching(total, local, micro, local // micro)


def learning_rate_factor(step: int, total_steps: int, optim: OptimConfig) -> float:
    """Linear warm-up to 1, then polynomial decay to 0: the factor on every group's rate at ``step``."""
    warmup = round(optim.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    return (1.0 - (step - warmup) / max(1, total_steps - warmup)) ** optim.power
