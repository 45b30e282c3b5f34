"""What a checkpoint holds: everything of a learner that a resume restores."""

from __future__ import annotations

import json
from collections.abc import Container
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from ppar_dist import __version__
from ppar_dist.checkpoint import (
    FROZEN,
    GENERATOR,
    METHOD,
    MODEL,
    STATE,
    TEACHER,
    Snapshot,
    moments_name,
    read_model,
    read_moments,
    read_state,
)
from ppar_dist.class_sets import RECORD, to_record
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError
from ppar_dist.models.average import AVERAGE, averaged_values
from ppar_dist.models.image_prototypes import refuse_former
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.run.early_stop import is_over
from ppar_dist.run.state import TrainState
from ppar_dist.training.learner import Learner
from ppar_dist.training.plan import RunPlan

_TEACHER = "teacher."
_MANY = 1_000_000  # parameters that are not trained: as many are worth a file that is not written again


def snapshot(learner: Learner, plan: RunPlan, world: World, same_in: Path | None = None) -> Snapshot:
    """A copy of what this rank writes of a checkpoint: its part of the moments, and on rank 0 all else.

    Collective, once. ``same_in`` is an earlier checkpoint of the run, or None.
    """
    moments = {moments_name(world.rank, world.world_size): learner.engine.moments()}
    generators = world.gather(torch.get_rng_state())
    if not world.is_main:
        return Snapshot(learner.state.step, moments, {}, {})
    model, teacher = learner.engine.module, learner.teacher
    frozen = _frozen(model)
    constant = {FROZEN: partial(_some, model, frozen)} if frozen else {}
    method = learner.objective.state_dict()
    if teacher is not None and teacher.is_constant:
        constant[TEACHER] = partial(_some, teacher)
    elif teacher is not None:
        method |= {_TEACHER + name: value for name, value in teacher.state_dict().items()}
    if learner.average is not None:
        method |= {AVERAGE + name: value for name, value in learner.average.state_dict().items()}
    tensors = {
        MODEL: _whole({name: each for name, each in model.state_dict().items() if name not in frozen}),
        METHOD: _whole(method),
        GENERATOR: {f"rank-{rank:05d}": state for rank, state in enumerate(generators)},
    }
    state = learner.state.to_json() | {"total_steps": plan.config.train.steps}
    versions = {"ppar_dist": __version__, "torch": torch.__version__}
    whole = plan.config.model_dump(mode="json")  # so that a checkpoint can be used without its run
    facts = {"world_size": world.world_size, "versions": versions, "whole_config": whole} | plan.facts()
    texts = {STATE: json.dumps(state, indent=1) + "\n", RECORD: to_record(plan.classes)}
    return Snapshot(learner.state.step, tensors | moments, texts, facts, constant, same_in)


def restore(learner: Learner, found: Path, plan: RunPlan, world: World) -> None:
    """Load a checkpoint.

    1. parameters and moments: model, frozen and optimizer files, written by any number of ranks
    2. bank, statistics, teacher: ppar.safetensors, teacher.safetensors
    3. step and data position: state.json; learning rate and stage follow from the step
    4. generator: rng.safetensors, where this rank had one

    Raises:
        UserError: its data position does not fit ``train.global_batch``, or it has what an earlier version
            alone has.
        RuntimeError, KeyError, ValueError, OSError: it does not fit the model, or is damaged.
    """
    model = read_model(found)
    refuse_former(model, found)
    learner.engine.load(model, read_moments(found))
    method = load_file(found / METHOD)
    state = learner.state = TrainState.from_json(read_state(found))
    if learner.teacher is not None:
        named = {k.removeprefix(_TEACHER): v for k, v in method.items() if k.startswith(_TEACHER)}
        learner.teacher.load_state_dict(named or load_file(found / TEACHER))
    if learner.average is not None:
        learner.average.load_state_dict(averaged_values(method))
    others = (_TEACHER, AVERAGE)
    learner.objective.load_state_dict({k: v for k, v in method.items() if not k.startswith(others)})
    mine = load_file(found / GENERATOR).get(f"rank-{world.rank:05d}")
    if mine is not None:
        torch.set_rng_state(mine)
    if not is_over(state, plan.config.train):
        forget_prototypes(learner)
    batch = plan.config.train.global_batch
    if state.samples_seen - state.stepped_over != state.step * batch:
        raise UserError(
            f"{state.samples_seen} samples in {state.step} steps are not global batches of {batch}; "
            "keep train.global_batch"
        )


def forget_prototypes(learner: Learner) -> None:
    """Of an end that was given more steps: the network moves away from what they were fitted to."""
    model = learner.engine.module
    if isinstance(model, Segmentor) and model.image_prototypes is not None:
        model.image_prototypes.forget()
        if learner.average is not None:
            with learner.average.in_place(model):
                model.image_prototypes.forget()
                learner.average.take(model)


def _frozen(model: nn.Module) -> set[str]:
    """Names of the parameters that are not trained, where they are many."""
    fixed = {name: value for name, value in model.named_parameters() if not value.requires_grad}
    return set(fixed) if sum(value.numel() for value in fixed.values()) >= _MANY else set()


def _some(module: nn.Module, names: Container[str] | None = None) -> dict[str, torch.Tensor]:
    state = module.state_dict()
    return _whole({name: value for name, value in state.items() if names is None or name in names})


def _whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as safetensors wants them: contiguous, on the CPU, none sharing memory.

    Those of a GPU come through page-locked memory, all under way at once: training waits for them once.
    """
    copies = {name: value.detach().to("cpu", non_blocking=True, copy=True) for name, value in tensors.items()}
    if any(value.is_cuda for value in tensors.values()):
        torch.cuda.current_stream().synchronize()
    return {name: value.contiguous() for name, value in copies.items()}
