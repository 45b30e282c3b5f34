"""DeepSpeed behind four verbs: forward, backward, step, and take/restore the optimiser's state.

The only module that imports deepspeed. DeepSpeed's own checkpoints are not used: ZeRO's shards load at the
number of ranks that wrote them only. Moments are gathered by parameter instead, through DeepSpeed's
interface for it, so that a state fits any number of ranks and any ZeRO stage.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ppar_dist.config.schema import Config
from ppar_dist.data.batches import batching
from ppar_dist.distributed.world import World
from ppar_dist.training.learning_rate import learning_rate_factor
from ppar_dist.training.precision import slow_bf16

log = logging.getLogger(__name__)

_MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, per parameter


class Engine:
    """A model, its optimiser and their gradients over all ranks."""

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], config: Config, world: World) -> None:
        """Build the optimiser over ``groups`` (dicts of params, lr, weight_decay, name)."""
        self.config = config
        self.world = world
        self.batching = batching(config, world.world_size)
        _warn_of_slow_precision(config, world)
        self._deepspeed = _import_deepspeed(world)
        trained = [group for group in groups if any(p.requires_grad for p in group["params"])]
        self._trained_ids = {id(p) for group in trained for p in group["params"]}
        self._base_rates = [float(group["lr"]) for group in trained]
        optimizer = torch.optim.AdamW(trained, betas=config.optim.betas)
        self._engine, self._optimizer, _, _ = self._deepspeed.initialize(
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
        module: nn.Module = self._engine.module
        return module

    def forward(self, *inputs: Any) -> Any:
        """The model's outputs, under autocast where precision says so."""
        return self._engine(*inputs)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add ``loss``'s gradient; ``last`` marks the last micro-batch of the step.

        The gradient applied is the mean over micro-batches and ranks.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    def step(self, step: int) -> bool:
        """Apply the accumulated gradient at the learning rate that belongs to ``step``.

        Returns:
            False, on every rank alike, when the gradient is not finite: then no parameter and no moment was
            touched, and the gradient is dropped.
        """
        self._factor = learning_rate_factor(step, self.config.train.steps, self.config.optim)
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * self._factor
        norm = self._clip()
        if norm is not None and not bool(norm.isfinite()):
            self._grad_norm = norm
            self._engine.zero_grad()
            return False
        self._engine.step()
        self._grad_norm = norm if norm is not None else self._engine.get_global_grad_norm()
        # ZeRO checks the norm before it updates, and reports a refusal only here.
        return bool(self._engine.was_step_applied())

    def skip(self) -> None:
        """Drop the accumulated gradient; nothing else changes. On every rank, or on none."""
        self._grad_norm = None
        if not self._zero:
            self._engine.zero_grad()
            return
        # ZeRO keeps gradients of its own, and drops them by itself when their norm is not finite.
        for gradients in self._optimizer.averaged_gradients.values():
            for gradient in gradients or ():
                gradient.fill_(float("nan"))
        self._engine.step()
        assert not self._engine.was_step_applied(), "DeepSpeed applied a gradient that is not a number"

    def grad_norm(self) -> float:
        """Norm of the last global gradient, before clipping."""
        return float("nan") if self._grad_norm is None else float(self._grad_norm)

    def learning_rates(self) -> dict[str, float]:
        """Current rate by group name."""
        groups = zip(self._optimizer.param_groups, self._base_rates, strict=True)
        return {group.get("name", "all"): rate * self._factor for group, rate in groups}

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """Moments and number of updates by parameter name, whole, on the CPU. Collective.

        Returns:
            ``exp_avg.<name>``, ``exp_avg_sq.<name>`` and ``step.<name>`` of every parameter that was updated
            yet; on other ranks than the main one nothing.
        """
        if self._zero and self._adamw.state:
            self._link_moments()
        state: dict[str, torch.Tensor] = {}
        for name, parameter in self._trained():
            updates = self._updates(parameter)
            if not updates:
                continue  # no gradient has reached it so far
            moments = {key: self._moment(parameter, key) for key in _MOMENTS}
            if self.world.is_main:
                state |= {f"{key}.{name}": value.to("cpu", copy=True) for key, value in moments.items()}
                state[f"step.{name}"] = torch.tensor(updates, dtype=torch.float32)
        return state

    def load(self, model: dict[str, torch.Tensor], optimizer: dict[str, torch.Tensor]) -> None:
        """Restore parameters, buffers and moments, of any number of ranks and any ZeRO stage.

        Raises:
            RuntimeError: names or shapes are not those of this model.
        """
        self.module.load_state_dict(model)
        self._adamw.state.clear()
        if self._zero:
            self._optimizer.refresh_fp32_params()  # ZeRO updates a copy of its own
            updates = (float(value) for key, value in optimizer.items() if key.startswith("step."))
            self._make_zero_moments(max(updates, default=0.0))
        for name, parameter in self._trained():
            if f"step.{name}" in optimizer:
                moments = {key: optimizer[f"{key}.{name}"] for key in _MOMENTS}
                self._set_moments(name, parameter, optimizer[f"step.{name}"], moments)

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Parameters that the optimiser updates, in an order equal on all ranks."""
        return ((name, p) for name, p in self.module.named_parameters() if id(p) in self._trained_ids)

    @property
    def _adamw(self) -> torch.optim.Optimizer:
        """The AdamW inside: over whole parameters, or with ZeRO over this rank's flat parts of them."""
        inner: torch.optim.Optimizer = self._optimizer.optimizer if self._zero else self._optimizer
        return inner

    @property
    def _zero(self) -> bool:
        return self.config.engine.zero_stage > 0

    def _updates(self, parameter: torch.nn.Parameter) -> float:
        """How many updates a parameter has had; with ZeRO all have had as many."""
        states = self._adamw.state
        state = next(iter(states.values()), None) if self._zero else states.get(parameter)
        return float(state["step"]) if state else 0.0

    def _moment(self, parameter: torch.nn.Parameter, key: str) -> torch.Tensor:
        if self._zero:
            whole: torch.Tensor = self._deepspeed.utils.safe_get_full_optimizer_state(parameter, key)
            return whole
        mine: torch.Tensor = self._adamw.state[parameter][key]
        return mine

    def _set_moments(
        self,
        name: str,
        parameter: torch.nn.Parameter,
        updates: torch.Tensor,
        moments: dict[str, torch.Tensor],
    ) -> None:
        for key, value in moments.items():
            if value.shape != parameter.shape:
                raise RuntimeError(f"{key} of {name} is {tuple(value.shape)}, not {tuple(parameter.shape)}")
            if self._zero:
                value = value.to(parameter.device)
                self._deepspeed.utils.safe_set_full_optimizer_state(parameter, value, key)
        if not self._zero:
            own = {key: value.to(parameter.device, copy=True) for key, value in moments.items()}
            self._adamw.state[parameter] = {"step": updates.clone(), **own}

    def _make_zero_moments(self, updates: float) -> None:
        """Moments of zero over ZeRO's flat parts, linked to their parameters; none for 0 updates."""
        if not updates:
            return
        for group in self._adamw.param_groups:
            for part in group["params"]:
                moments = {key: torch.zeros_like(part) for key in _MOMENTS}
                self._adamw.state[part] = {"step": torch.tensor(updates), **moments}
        self._link_moments()

    def _link_moments(self) -> None:
        """Tell each parameter which part of ZeRO's flat moments is its own.

        DeepSpeed does so by itself once, after it has updated its first group: the others have no moments
        then, and stay without.
        """
        self._optimizer._hp_optimizer_states_linked = False
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def _clip(self) -> torch.Tensor | None:
        """ZeRO-0 only: DeepSpeed clips there too, but keeps the norm to itself, so it is done here."""
        if self._zero:
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


def _warn_of_slow_precision(config: Config, world: World) -> None:
    """Say, once per machine, that bf16 will be slow on it."""
    where = slow_bf16(world.device) if config.engine.precision == "bf16" and not world.local_rank else None
    # Neither refused nor replaced by fp32: without instructions the library multiplies the same bf16 values,
    # sums in float32 and rounds once, as the instructions do. So a run that is resumed on such a machine goes
    # on as the run it was, where a fallback would change its arithmetic and a refusal would end it.
    if where is not None:
        log.warning(
            "engine.precision=bf16, but %s of this machine has no such instructions: the run computes the "
            "same, but MUCH slower than fp32; stop it and resume on a machine that has them (x86 "
            "with avx512_bf16 or amx_bf16, GPUs from Ampere on), or begin a run with engine.precision=fp32",
            where,
        )


def _import_deepspeed(world: World) -> Any:
    """Import DeepSpeed for the device in use; it guesses, and on a machine without a GPU it guesses aloud."""
    if world.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # it insists, also on a single rank
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    import deepspeed

    # Its shared-memory collective serves inference only, but is compiled at every first start, and a
    # process killed meanwhile leaves a lock file on which all later ones hang.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
