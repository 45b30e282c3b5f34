"""DeepSpeed behind four verbs: forward, backward, step, and take/restore the optimiser's state.

The only module that imports deepspeed. DeepSpeed's own checkpoints are not used: ZeRO's shards load at the
number of ranks that wrote them only. Each rank gives its part of the moments by parameter instead, with the
place of the part in the parameter, so that a state fits any number of ranks and any ZeRO stage.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ppar_dist.checkpoint import MOMENTS
from ppar_dist.config.schema import Config
from ppar_dist.data.batches import batching
from ppar_dist.distributed.world import World
from ppar_dist.training.learning_rate import learning_rate_factor

BUCKET_ELEMENTS = 50_000_000
"""Elements that ZeRO reduces at once, 200 MB; its own 5e8 hold 2 GB of every rank."""
_NO_ZERO = 1e-6  # added to a norm that divides, as torch's and DeepSpeed's own clipping do


class Engine:
    """A model, its optimiser and their gradients over all ranks."""

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], config: Config, world: World) -> None:
        """Build the optimiser over ``groups`` (dicts of params, lr, weight_decay, name)."""
        self.config = config
        self.world = world
        self.batching = batching(config, world.world_size)
        self._deepspeed = _import_deepspeed(world)
        trained = [group for group in groups if any(p.requires_grad for p in group["params"])]
        self._trained_ids = {id(p) for group in trained for p in group["params"]}
        self._base_rates = [float(group["lr"]) for group in trained]
        # Fused: one kernel for all parameters. On CPUs it has nothing to save.
        on_gpu = world.device.type == "cuda"
        optimizer = torch.optim.AdamW(trained, betas=config.optim.betas, fused=on_gpu or None)
        self._engine, self._optimizer, _, _ = self._deepspeed.initialize(
            model=model.to(world.device),
            optimizer=optimizer,
            config=self._settings(),
            dist_init_required=False,
        )
        self._factor, self._grad_norm, self._drop = 1.0, float("nan"), False
        if self._zero:
            # ZeRO asks whether the gradient is one to take; its own way would block on the device many times.
            self._optimizer.check_grad_overflow = True
            self._optimizer.check_overflow = self._answer_zero

    @property
    def module(self) -> nn.Module:
        """The bare model."""
        module: nn.Module = self._engine.module
        return module

    def forward(self, *inputs: Any) -> Any:
        """The model's outputs."""
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
        self._grad_norm = self._norm()
        if not math.isfinite(self._grad_norm):
            self._take(drop=True)
            return False
        limit = self.config.optim.clip_grad_norm
        if limit and self._grad_norm + _NO_ZERO > limit:
            torch._foreach_mul_(self._gradients(), limit / (self._grad_norm + _NO_ZERO))
        self._take(drop=False)
        return True

    def skip(self) -> None:
        """Drop the accumulated gradient; nothing else changes. On every rank, or on none."""
        self._grad_norm = float("nan")
        self._take(drop=True)

    def _take(self, drop: bool) -> None:
        """Let DeepSpeed update the parameters, or drop the gradient."""
        if drop and not self._zero:
            self._engine.zero_grad()
            return
        self._drop = drop
        self._engine.step()
        assert self._engine.was_step_applied() != drop, "DeepSpeed did not do as it was told"

    def _answer_zero(self, partition_gradients: bool = True) -> None:
        self._optimizer.overflow = self._drop

    def _gradients(self) -> list[Tensor]:
        """Those of the step, averaged over the ranks: all, or with ZeRO those of this rank's part."""
        if self._zero:
            return [each for group in self._optimizer.averaged_gradients.values() for each in group or ()]
        parameters = (p for group in self._optimizer.param_groups for p in group["params"])
        return [p.grad for p in parameters if p.grad is not None]

    def _norm(self) -> float:
        """Norm of the whole gradient, equal on all ranks. The step's only wait for the device in here."""
        norms = torch._foreach_norm(self._gradients())
        square = torch.stack(norms).double().square().sum() if norms else self._no_gradient()
        return math.sqrt(self.world.sum(square) if self._zero else square)

    def _no_gradient(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self.world.device)

    def grad_norm(self) -> float:
        """Norm of the last global gradient, before clipping."""
        return self._grad_norm

    def learning_rates(self) -> dict[str, float]:
        """Current rate by group name."""
        groups = zip(self._optimizer.param_groups, self._base_rates, strict=True)
        return {group.get("name", "all"): rate * self._factor for group, rate in groups}

    def moments(self) -> dict[str, torch.Tensor]:
        """This rank's part of the moments and the number of updates, by parameter name. No collective.

        The parts of all ranks are the whole. With ZeRO a part is what the rank holds; without, all hold all,
        and each gives its share of the parameters.

        Returns:
            ``exp_avg.<name>``, ``exp_avg_sq.<name>`` and ``step.<name>`` of each parameter that was updated
            yet. Of one that several ranks share: its consecutive values, the place ``start.<name>`` of the
            first, and ``shape.<name>``. Copies on the CPU.
        """
        trained = dict(self._trained())
        updates = self._updates(trained)
        state: dict[str, torch.Tensor] = {}
        for name, start, moments in self._own_moments({k: v for k, v in trained.items() if updates[k]}):
            for key, value in moments.items():
                state[f"{key}.{name}"] = value.to("cpu", non_blocking=True, copy=True)
            state[f"step.{name}"] = torch.tensor(updates[name], dtype=torch.float32)
            if start is not None:
                state[f"start.{name}"] = torch.tensor(start)
                state[f"shape.{name}"] = torch.tensor(trained[name].shape)
        if self.world.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # once, for all copies under way
        return state

    def _own_moments(
        self, updated: Mapping[str, nn.Parameter]
    ) -> Iterator[tuple[str, int | None, dict[str, Tensor]]]:
        """Name, place of a part of a parameter (None: the whole), and its moments."""
        if not self._zero:
            share = _share(updated, self.world.rank, self.world.world_size)
            for name in share:
                yield name, None, {key: self._adamw.state[updated[name]][key] for key in MOMENTS}
            return
        if updated:
            self._link_moments()
        for name, parameter in updated.items():
            mine = getattr(parameter, "_hp_mapping", None)
            if mine is None:
                continue  # another rank's
            start, count = mine.lp_fragment_address.start, mine.lp_fragment_address.numel
            moments = {key: mine.get_optim_state_fragment(key) for key in MOMENTS}
            if count == parameter.numel():
                yield name, None, {key: value.view(parameter.shape) for key, value in moments.items()}
            else:
                yield name, start, moments

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
                moments = {key: optimizer[f"{key}.{name}"] for key in MOMENTS}
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

    def _updates(self, trained: Mapping[str, nn.Parameter]) -> dict[str, float]:
        """How many updates each parameter has had, in one transfer; with ZeRO all have had as many."""
        states = self._adamw.state
        if self._zero:
            first = next(iter(states.values()), None)
            return dict.fromkeys(trained, float(first["step"]) if first else 0.0)
        counted = {name: states[p]["step"] for name, p in trained.items() if states.get(p)}
        counts = torch.stack(list(counted.values())).tolist() if counted else []
        return dict.fromkeys(trained, 0.0) | dict(zip(counted, counts, strict=True))

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
            self._adamw.state[parameter] = {"step": self._counter(updates), **own}

    def _make_zero_moments(self, updates: float) -> None:
        """Moments of zero over ZeRO's flat parts, linked to their parameters; none for 0 updates."""
        if not updates:
            return
        for group in self._adamw.param_groups:
            for part in group["params"]:
                moments = {key: torch.zeros_like(part) for key in MOMENTS}
                self._adamw.state[part] = {"step": self._counter(torch.tensor(updates)), **moments}
        self._link_moments()

    def _link_moments(self) -> None:
        """Tell each parameter which part of ZeRO's flat moments is its own.

        DeepSpeed does so by itself once, after it has updated its first group: the others have no moments
        then, and stay without.
        """
        self._optimizer._hp_optimizer_states_linked = False
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def _counter(self, updates: Tensor) -> Tensor:
        """A number of updates where AdamW looks for it: fused, on the device."""
        fused = self._adamw.param_groups[0]["fused"]
        return updates.to(self.world.device if fused else "cpu", copy=True)

    def _settings(self) -> dict[str, Any]:
        cut, stage = self.batching, self.config.engine.zero_stage
        zero: dict[str, Any] = {"stage": stage}
        if stage:
            zero |= {"reduce_bucket_size": BUCKET_ELEMENTS, "allgather_bucket_size": BUCKET_ELEMENTS}
            zero |= {"compute_grad_norm": False}  # it is done here
            zero |= {"overlap_comm": self.world.device.type == "cuda" and self.world.world_size > 1}
        return {
            "train_batch_size": cut.global_batch,
            "train_micro_batch_size_per_gpu": cut.micro_batch,
            "gradient_accumulation_steps": cut.accumulation,
            "gradient_clipping": 0.0,  # it is done here
            "zero_optimization": zero,
            "steps_per_print": 10**9,
        }


def _share(parameters: Mapping[str, nn.Parameter], rank: int, ranks: int) -> list[str]:
    """Names of a rank's consecutive share of parameters, of about as many values as any other's."""
    total, before, mine = sum(p.numel() for p in parameters.values()), 0, []
    for name, parameter in parameters.items():
        if before * ranks // total == rank:
            mine.append(name)
        before += parameter.numel()
    return mine


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
