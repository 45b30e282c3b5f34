"""DeepSpeed behind four verbs: forward, backward, step, save/load. The only module that imports deepspeed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ppar_dist.config import Config
from ppar_dist.distributed import World
from ppar_dist.schedule import batching, learning_rate_factor

ENGINE_TAG = "engine"  # the folder of DeepSpeed's files inside a checkpoint


class Engine:
    """A model, its optimiser and their gradients over all ranks."""

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], config: Config, world: World) -> None:
        """Build the optimiser over ``groups`` (dicts of params, lr, weight_decay, name)."""
        self.config = config
        self.world = world
        self.batching = batching(config, world.world_size)
        deepspeed = _import_deepspeed(world)
        trained = [group for group in groups if any(p.requires_grad for p in group["params"])]
        self._base_rates = [float(group["lr"]) for group in trained]
        optimizer = torch.optim.AdamW(trained, betas=config.optim.betas)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model.to(world.device),
            optimizer=optimizer,
            config=self._settings(),
            dist_init_required=False,
        )
        self._factor = 1.0
        self._grad_norm: Any = None

    @property
    def module(self) -> nn.Module:
        """The bare model."""
        return self._engine.module

    def forward(self, *inputs: Any) -> Any:
        """The model's outputs, under autocast where precision says so."""
        return self._engine(*inputs)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add ``loss``'s gradient; ``last`` marks the last micro-batch of the step.

        The gradient applied is the mean over micro-batches and ranks.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    def step(self, step: int) -> None:
        """Apply the accumulated gradient at the learning rate that belongs to ``step``.

        Raises:
            FloatingPointError: with ZeRO stage 0, when the gradient is not finite: on every rank alike, and
                before any parameter was touched.
        """
        self._factor = learning_rate_factor(step, self.config.train.steps, self.config.optim)
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * self._factor
        norm = self._clip()
        if norm is not None and not bool(norm.isfinite()):
            raise FloatingPointError(f"step {step + 1} gave a gradient of norm {float(norm)}; lower optim.lr")
        self._engine.step()
        self._grad_norm = norm if norm is not None else self._engine.get_global_grad_norm()

    def grad_norm(self) -> float:
        """Norm of the last global gradient, before clipping."""
        return float("nan") if self._grad_norm is None else float(self._grad_norm)

    def learning_rates(self) -> dict[str, float]:
        """Current rate by group name."""
        groups = zip(self._optimizer.param_groups, self._base_rates, strict=True)
        return {group.get("name", "all"): rate * self._factor for group, rate in groups}

    def save(self, folder: Path) -> None:
        """Write parameters and optimiser state of all ranks below ``folder/engine``. Collective."""
        with _quiet():
            # DeepSpeed's own `latest` is written before the other ranks have written: never used.
            self._engine.save_checkpoint(str(folder), tag=ENGINE_TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """Restore what ``save`` wrote at the same world size. Collective."""
        with _quiet():
            loaded, _ = self._engine.load_checkpoint(str(folder), tag=ENGINE_TAG)
        if loaded is None:
            raise RuntimeError(f"DeepSpeed found no engine state below {folder}")

    def _clip(self) -> torch.Tensor | None:
        """ZeRO-0 only: DeepSpeed clips there too, but keeps the norm to itself, so it is done here."""
        if self.config.engine.zero_stage:
            return None
        limit = self.config.optim.clip_grad_norm or float("inf")
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        return torch.nn.utils.clip_grad_norm_(parameters, limit)

    def _settings(self) -> dict[str, Any]:
        cut, stage = self.batching, self.config.engine.zero_stage
        settings: dict[str, Any] = {
            "train_batch_size": cut.global_batch,
            "train_micro_batch_size_per_gpu": cut.micro_batch,
            "gradient_accumulation_steps": cut.accumulation,
            "gradient_clipping": self.config.optim.clip_grad_norm if stage else 0.0,
            "zero_optimization": {"stage": stage},
            "steps_per_print": 10**9,
        }
        if self.config.engine.precision == "bf16":
            # Parameters and optimiser stay fp32; matrix products and convolutions run in bf16.
            settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        return settings


def _import_deepspeed(world: World) -> Any:
    """Import DeepSpeed for the device in use; it guesses, and on a machine without a GPU it guesses aloud."""
    if world.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # it insists, also on a single rank
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    import deepspeed

    # Its shared-memory collective serves inference only, but is compiled at every first start, and a
    # process killed meanwhile leaves a lock file on which all later ones wait for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed logs every file it touches; the checkpoint module says what matters."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
