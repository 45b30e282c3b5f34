"""How the budget is cut: a global batch over ranks and micro-batches, a rate over the steps. Pure."""

from __future__ import annotations

from ppar_dist.config.schema import OptimConfig


def learning_rate_factor(step: int, total_steps: int, optim: OptimConfig) -> float:
    """Linear warm-up to 1, then polynomial decay to 0: the factor on every group's rate at ``step``."""
    warmup = round(optim.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    result: float = (1.0 - (step - warmup) / max(1, total_steps - warmup)) ** optim.power
    return result
