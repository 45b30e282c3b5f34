"""A run's folder: who may use it, what a checkpoint of it holds, and how a run is taken up again."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ppar_dist import __version__, checkpoint
from ppar_dist.checkpoint import Snapshot
from ppar_dist.config.identity import changes_since, config_changes, stored_config
from ppar_dist.config.load import dump_config
from ppar_dist.distributed.world import World
from ppar_dist.errors import InUse, UserError
from ppar_dist.models.load_errors import reason
from ppar_dist.ppar.objective import Objective
from ppar_dist.ppar.teacher import Teacher
from ppar_dist.run.lock import RunLock
from ppar_dist.run.state import TrainState
from ppar_dist.training.engine import Engine
from ppar_dist.training.plan import RunPlan

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
METHOD_FILE = "ppar.safetensors"
GENERATOR_FILE = "rng.safetensors"
_TEACHER = "teacher."

log = logging.getLogger(__name__)


@dataclass
class Training:
    """Everything that a checkpoint restores."""

    engine: Engine
    objective: Objective
    teacher: Teacher | None
    state: TrainState


class RunFolder:
    """``run.dir`` as one rank sees it; rank 0 decides and writes for all."""

    def __init__(self, plan: RunPlan, world: World, lock: RunLock) -> None:
        """``lock`` is taken by rank 0 in ``claim``; who made it gives it back."""
        self.plan, self.world, self.lock = plan, world, lock
        self.path = plan.config.run.dir
        self.resumed_from: Path | None = None  # the checkpoint that the run goes on from
        self.resumed_step: int | None = None  # its step
        self._is_config_known = False  # config.yaml is there, or what it says does not matter; rank 0 knows

    def claim(self, accept_changes: bool = False, alive: Callable[[], object] = lambda: None) -> None:
        """Make the folder and take its lock. Collective.

        ``alive`` is called while rank 0 waits for another job to end.

        Raises:
            UserError: another job works in it, it holds checkpoints of a configuration that computes
                something else, or it cannot be written.
        """
        self.refuse_together(self._claim_problem(accept_changes, alive) if self.world.is_main else None)

    def record(self) -> None:
        """Write the resolved configuration, once nothing speaks against going on with it. Collective.

        Raises:
            UserError: it cannot be written.
        """
        self.refuse_together(self._write_config() if self.world.is_main else None)

    def refuse_together(self, problem: str | None) -> None:
        """Raise rank 0's problem on every rank; on one alone, the others would wait for it. Collective.

        Raises:
            UserError: rank 0 gave a problem.
        """
        problem = self.world.broadcast(problem)
        if problem:
            raise UserError(problem)

    def _claim_problem(self, accept_changes: bool, alive: Callable[[], object]) -> str | None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(log.warning, alive)
            before = None if accept_changes else stored_config(self.path)
            changes = config_changes(before, self.plan.config) if before else []
            self._is_config_known = accept_changes or (before is not None and not changes)
            if changes and checkpoint.list_checkpoints(self.path):
                return self._other_config(changes)
        except InUse as error:
            return str(error)
        except UserError as error:
            return f"{error}. Give another run.dir, or --accept-changes to replace it"
        except OSError as error:
            return self._not_writable(error.strerror)
        return None if os.access(self.path, os.W_OK) else self._not_writable("no permission")

    def _other_config(self, changes: list[str]) -> str:
        return (
            f"{self.path} was started with another configuration: {'; '.join(changes)}. "
            "Give another run.dir, or --accept-changes to go on with the new one"
        )

    def _write_config(self) -> str | None:
        try:
            checkpoint.write_atomically(self.path / "config.yaml", dump_config(self.plan.config))
        except OSError as error:
            return self._not_writable(error.strerror)
        self._is_config_known = True
        return None

    def _not_writable(self, why: str | None) -> str:
        return f"run.dir {self.path} is not writable ({why}); give another one"

    def snapshot(self, training: Training) -> Snapshot | None:
        """A copy of everything that a checkpoint holds, on rank 0; None on the others. Collective."""
        optimizer = training.engine.optimizer_state()
        generators = self.world.gather(torch.get_rng_state())
        if not self.world.is_main:
            return None
        teacher = training.teacher.state_dict() if training.teacher is not None else {}
        method = training.objective.state_dict() | {_TEACHER + name: value for name, value in teacher.items()}
        tensors = {
            MODEL_FILE: _whole(training.engine.module.state_dict()),
            OPTIMIZER_FILE: optimizer,  # copies already
            METHOD_FILE: _whole(method),
            GENERATOR_FILE: {f"rank-{rank:05d}": state for rank, state in enumerate(generators)},
        }
        state = training.state.to_json() | {"total_steps": self.plan.config.train.steps}
        versions = {"ppar_dist": __version__, "torch": torch.__version__}
        facts = {"world_size": self.world.world_size, "versions": versions} | self.plan.facts()
        texts = {"state.json": json.dumps(state, indent=1) + "\n"}
        return Snapshot(training.state.step, tensors, texts, facts)

    def retention(self, state: TrainState) -> Callable[[Path], object]:
        """What deletes the checkpoints no longer kept, to be called when one more is published.

        The one that the run would roll back to now stays: those of a streak of non-finite steps are no use.
        """
        keep, limit = self.plan.config.checkpoint, state.rollback_limit()
        best = {state.best_step} if keep.keep_best and state.best_step is not None else set()
        in_use = {self.resumed_from} if self.resumed_from is not None else set()

        def retain(_: Path) -> None:
            safe = [step for step in self._complete_steps() if step <= limit][-1:]
            checkpoint.retain(self.path, keep.keep_last, keep.keep_every, best | set(safe), in_use)

        return retain

    def _complete_steps(self) -> list[int]:
        """Steps of the checkpoints that are there in full, rising."""
        folders = checkpoint.list_checkpoints(self.path)
        return [checkpoint.step_of(folder) or 0 for folder in folders if checkpoint.is_complete(folder)]

    def delete_after(self, step: int) -> str | None:
        """Delete the checkpoints of later steps than ``step``: the run has gone back behind them.

        Returns:
            Why one of them could not even be renamed: a restart would take it up. None if all are gone.
        """
        try:
            for folder in checkpoint.list_candidates(self.path):
                if (checkpoint.step_of(folder) or 0) > step:
                    checkpoint.withdraw(folder)
        except OSError as error:
            return f"{folder.name}, which the run has rolled back behind, cannot be deleted: {error.strerror}"
        return None

    def quarantine_file(self) -> Path:
        """Where this rank writes down the bad samples it met."""
        return self.path / "quarantine" / f"rank-{self.world.rank:05d}.jsonl"

    def restore_if_gone(self) -> bool:
        """Make the folder anew where somebody deleted it under the run; says whether that was so."""
        try:
            if (self.path / "config.yaml").exists():
                return False
        except OSError:
            return False  # it is there, behind storage that fails
        log.warning("run.dir %s has gone and is made anew; what it held is lost", self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            log.warning("%s", self._not_writable(error.strerror))
            return False
        problem = self._write_config()
        if problem:
            log.warning("%s", problem)
        return problem is None

    def resume(self, training: Training, before: int | None = None) -> Path | None:
        """Take up the newest whole checkpoint, if there is one. Collective.

        1. parameters and moments: model.safetensors, optimizer.safetensors, for any number of ranks
        2. bank, statistics, teacher: ppar.safetensors
        3. step and data position: state.json; learning rate and stage follow from the step
        4. generator: rng.safetensors, where this rank had one

        Args:
            training: receives the state.
            before: only a checkpoint of this step or an earlier one.

        Returns:
            The checkpoint taken up; None if there was none.

        Raises:
            UserError: the checkpoint's data or model is not this run's, or no checkpoint is whole though
                there are some.
        """
        found = checkpoint.find_checkpoint(self.path, before) if self.world.is_main else None
        found = self.world.broadcast(found)
        if found is None:
            self.refuse_together(self._damage() if self.world.is_main and before is None else None)
            return None
        with checkpoint.reading(found):
            manifest = checkpoint.read_manifest(found)
            self.refuse_together(self._unknown_change(manifest) if self.world.is_main else None)
            self._check_origin(manifest)
            try:
                self._restore(training, found)
            except (RuntimeError, KeyError, ValueError, OSError) as error:
                if manifest["config_sha256"] == self.plan.facts()["config_sha256"]:
                    raise
                raise UserError(
                    f"{found} does not fit the changed configuration: {reason(error)}. Give another run.dir"
                ) from None
        self.resumed_from, self.resumed_step = found, training.state.step
        self._forget_lost_best(training.state)
        if self.world.is_main:
            self._say_resumed(found, manifest, training.state)
        return found

    def _forget_lost_best(self, state: TrainState) -> None:
        """A best checkpoint that is not there any more must not keep a later one from becoming it."""
        there = state.best_step is None or state.best_step in self._complete_steps()
        if not self.world.broadcast(there):
            state.best_step = state.best_miou = None

    def _damage(self) -> str | None:
        """A run whose checkpoints are all damaged does not begin anew without being told to."""
        folders = checkpoint.list_checkpoints(self.path)
        if not folders:
            return None
        problems = "; ".join(f"{folder.name}: {checkpoint.verify(folder)[:1]}" for folder in folders[-3:])
        return (
            f"none of the {len(folders)} checkpoints in {self.path} is whole ({problems}); restore one, or "
            "give another run.dir to begin anew"
        )

    def _say_resumed(self, found: Path, manifest: dict[str, Any], state: TrainState) -> None:
        log.info("resumed from %s, the newest whole checkpoint: step %d", found, state.step)
        before, now, cut = int(manifest["world_size"]), self.world.world_size, self.plan.batching
        if before != now:
            log.info(
                "%d ranks instead of %d: global batch %d and learning rate stay, accumulation is now %d: "
                "%d ranks x %d micro-batches x %d",
                *(now, before, cut.global_batch, cut.accumulation, now, cut.accumulation, cut.micro_batch),
            )

    def _restore(self, training: Training, found: Path) -> None:
        training.engine.load(load_file(found / MODEL_FILE), load_file(found / OPTIMIZER_FILE))
        method = load_file(found / METHOD_FILE)
        if training.teacher is not None:
            named = {k.removeprefix(_TEACHER): v for k, v in method.items() if k.startswith(_TEACHER)}
            training.teacher.load_state_dict(named)
        training.objective.load_state_dict({k: v for k, v in method.items() if not k.startswith(_TEACHER)})
        mine = load_file(found / GENERATOR_FILE).get(f"rank-{self.world.rank:05d}")
        if mine is not None:
            torch.set_rng_state(mine)
        state = training.state = TrainState.from_json(checkpoint.read_state(found))
        if state.samples_seen - state.stepped_over != state.step * self.plan.config.train.global_batch:
            raise UserError(
                f"{state.samples_seen} samples in {state.step} steps are no global batches of "
                f"{self.plan.config.train.global_batch}; keep train.global_batch"
            )

    def _unknown_change(self, manifest: dict[str, Any]) -> str | None:
        """A run that has lost its config.yaml is held against what its checkpoint noted."""
        changes = [] if self._is_config_known else changes_since(manifest["config"], self.plan.config)
        return self._other_config(changes) if changes else None

    def _check_origin(self, manifest: dict[str, Any]) -> None:
        if manifest.get("text_sha256") != self.plan.facts()["text_sha256"]:
            raise UserError(
                f"text.file={self.plan.config.text.file} does not hold what {self.path} was trained with; "
                "restore the file, or give another run.dir"
            )
        now = self.plan.facts()["data"]
        changed = [name for name, fingerprint in now.items() if manifest["data"].get(name) != fingerprint]
        if changed:
            raise UserError(
                f"the data of {', '.join(changed)} is not what {self.path} was trained on; "
                "restore the shards, or give another run.dir"
            )


def _whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as safetensors wants them: contiguous, on the CPU, none sharing memory."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
