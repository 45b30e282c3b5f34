"""What a checkpoint holds: everything of a learner that a resume restores."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from ppar_dist import __version__
from ppar_dist.checkpoint import GENERATOR, METHOD, MODEL, OPTIMIZER, STATE, Snapshot, read_state
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError
from ppar_dist.run.state import TrainState
from ppar_dist.training.learner import Learner
from ppar_dist.training.plan import RunPlan

_TEACHER = "teacher."


def snapshot(learner: Learner, plan: RunPlan, world: World) -> Snapshot | None:
    """A copy of everything that a checkpoint holds, on rank 0; None on the others. Collective."""
    optimizer = learner.engine.optimizer_state()
    generators = world.gather(torch.get_rng_state())
    if not world.is_main:
        return None
    teacher = learner.teacher.state_dict() if learner.teacher is not None else {}
    method = learner.objective.state_dict() | {_TEACHER + name: value for name, value in teacher.items()}
    tensors = {
        MODEL: _whole(learner.engine.module.state_dict()),
        OPTIMIZER: optimizer,  # copies already
        METHOD: _whole(method),
        GENERATOR: {f"rank-{rank:05d}": state for rank, state in enumerate(generators)},
    }
    state = learner.state.to_json() | {"total_steps": plan.config.train.steps}
    versions = {"ppar_dist": __version__, "torch": torch.__version__}
    whole = plan.config.model_dump(mode="json")  # so that a checkpoint can be used without its run
    facts = {"world_size": world.world_size, "versions": versions, "whole_config": whole} | plan.facts()
    texts = {STATE: json.dumps(state, indent=1) + "\n"}
    return Snapshot(learner.state.step, tensors, texts, facts)


def restore(learner: Learner, found: Path, plan: RunPlan, world: World) -> None:
    """Load a checkpoint.

    1. parameters and moments: model.safetensors, optimizer.safetensors, for any number of ranks
    2. bank, statistics, teacher: ppar.safetensors
    3. step and data position: state.json; learning rate and stage follow from the step
    4. generator: rng.safetensors, where this rank had one

    Raises:
        UserError: its data position does not fit ``train.global_batch``.
        RuntimeError, KeyError, ValueError, OSError: it does not fit the model, or is damaged.
    """
    learner.engine.load(load_file(found / MODEL), load_file(found / OPTIMIZER))
    method = load_file(found / METHOD)
    if learner.teacher is not None:
        named = {k.removeprefix(_TEACHER): v for k, v in method.items() if k.startswith(_TEACHER)}
        learner.teacher.load_state_dict(named)
    learner.objective.load_state_dict({k: v for k, v in method.items() if not k.startswith(_TEACHER)})
    mine = load_file(found / GENERATOR).get(f"rank-{world.rank:05d}")
    if mine is not None:
        torch.set_rng_state(mine)
    state = learner.state = TrainState.from_json(read_state(found))
    batch = plan.config.train.global_batch
    if state.samples_seen - state.stepped_over != state.step * batch:
        raise UserError(
            f"{state.samples_seen} samples in {state.step} steps are not global batches of {batch}; "
            "keep train.global_batch"
        )


def _whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as safetensors wants them: contiguous, on the CPU, none sharing memory.

    Those of a GPU come through page-locked memory, all under way at once: training waits for them once.
    """
    copies = {name: value.detach().to("cpu", non_blocking=True, copy=True) for name, value in tensors.items()}
    if any(value.is_cuda for value in tensors.values()):
        torch.cuda.current_stream().synchronize()
    return {name: value.contiguous() for name, value in copies.items()}
