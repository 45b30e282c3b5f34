"""A run's folder: who may use it, what a checkpoint of it holds, and how a run is taken up again."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ppar_dist import __version__, checkpoint
from ppar_dist.config import ConfigError, dump_config
from ppar_dist.distributed import World
from ppar_dist.engine import Engine
from ppar_dist.models.weights import reason
from ppar_dist.plan import Plan, config_changes, stored_config
from ppar_dist.ppar.objective import Objective
from ppar_dist.ppar.teacher import Teacher

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
RNG_FILE = "rng.safetensors"
METHOD_FILE = "ppar.safetensors"
_TEACHER = "teacher."

log = logging.getLogger(__name__)


@dataclass
class TrainState:
    """Where a run stands. The whole state of the data is ``samples_seen``."""

    step: int = 0
    samples_seen: int = 0
    best_miou: float | None = None  # on held-out source data
    best_step: int | None = None


@dataclass
class Training:
    """Everything that a checkpoint restores."""

    engine: Engine
    objective: Objective
    teacher: Teacher | None
    state: TrainState


class RunFolder:
    """``run.dir`` as one rank sees it; rank 0 decides and writes for all."""

    def __init__(self, plan: Plan, world: World) -> None:
        self.plan, self.world = plan, world
        self.path = plan.config.run.dir

    def claim(self, accept_changes: bool = False) -> None:
        """Make the folder. Collective.

        Raises:
            ConfigError: it holds checkpoints of a configuration that computes something else, or
                cannot be written.
        """
        self.refuse_together(self._claim_problem(accept_changes) if self.world.is_main else None)

    def record(self) -> None:
        """Write the resolved configuration, once nothing speaks against going on with it. Collective.

        Raises:
            ConfigError: it cannot be written.
        """
        self.refuse_together(self._write_config() if self.world.is_main else None)

    def refuse_together(self, problem: str | None) -> None:
        """Raise rank 0's problem on every rank; on one alone, the others would wait for it. Collective.

        Raises:
            ConfigError: rank 0 gave a problem.
        """
        problem = self.world.broadcast(problem)
        if problem:
            raise ConfigError(problem)

    def _claim_problem(self, accept_changes: bool) -> str | None:
        try:
            before = None if accept_changes else stored_config(self.path)
            changes = config_changes(before, self.plan.config) if before else []
            if changes and checkpoint.list_checkpoints(self.path):
                return (
                    f"{self.path} was started with another configuration: {'; '.join(changes)}. "
                    "Give another run.dir, or --accept-changes to go on with the new one"
                )
            self.path.mkdir(parents=True, exist_ok=True)
        except ConfigError as error:
            return f"{error}. Give another run.dir, or --accept-changes to replace it"
        except OSError as error:
            return self._not_writable(error.strerror)
        return None if os.access(self.path, os.W_OK) else self._not_writable("no permission")

    def _write_config(self) -> str | None:
        try:
            checkpoint.write_atomically(self.path / "config.yaml", dump_config(self.plan.config))
        except OSError as error:
            return self._not_writable(error.strerror)
        return None

    def _not_writable(self, why: str | None) -> str:
        return f"run.dir {self.path} is not writable ({why}); give another one"

    def save(self, training: Training) -> Path:
        """Publish a checkpoint of ``training`` and delete those no longer kept. Collective.

        Raises:
            CheckpointError: on every rank alike; nothing was published.
        """
        versions = {"ppar_dist": __version__, "torch": torch.__version__}
        facts = {"world_size": self.world.world_size, "versions": versions} | self.plan.facts()
        snapshot = self._snapshot(training, facts)
        folder, problem = None, None
        if self.world.is_main:
            try:
                folder = checkpoint.publish(self.path, snapshot)
                self._retain(training.state)
            except checkpoint.CheckpointError as error:
                problem = str(error)
        folder, problem = self.world.broadcast((folder, problem))
        if problem:
            raise checkpoint.CheckpointError(problem)
        return folder

    def _retain(self, state: TrainState) -> None:
        keep = self.plan.config.checkpoint
        best = {state.best_step} if keep.keep_best and state.best_step is not None else set()
        checkpoint.retain(self.path, keep.keep_last, keep.keep_every, best)

    def _snapshot(self, training: Training, facts: dict[str, Any]) -> checkpoint.Snapshot:
        """Everything that a checkpoint restores, in memory. Collective."""
        rng = {
            f"rank-{rank:05d}": value for rank, value in enumerate(self.world.gather(torch.get_rng_state()))
        }
        teacher = training.teacher.state_dict() if training.teacher is not None else {}
        method = training.objective.state_dict() | {_TEACHER + name: value for name, value in teacher.items()}
        state = asdict(training.state) | {"total_steps": self.plan.config.train.steps}
        tensors = {
            MODEL_FILE: _whole(training.engine.module.state_dict()),
            OPTIMIZER_FILE: self._engine_files(training),
            METHOD_FILE: _whole(method),
            RNG_FILE: _whole(rng),
        }
        texts = {"state.json": json.dumps(state, indent=1) + "\n"}
        return checkpoint.Snapshot(training.state.step, tensors, texts, facts)

    def _engine_files(self, training: Training) -> dict[str, torch.Tensor]:
        """DeepSpeed's files as bytes, by their path."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(self.world.broadcast(name))
            training.engine.save(folder)
            self.world.barrier()
            files = [path for path in folder.rglob("*") if path.is_file()] if self.world.is_main else []
            found = {
                path.relative_to(folder).as_posix(): torch.frombuffer(
                    bytearray(path.read_bytes()), dtype=torch.uint8
                )
                for path in files
            }
            self.world.barrier()
        return found

    def resume(self, training: Training) -> None:
        """Take up the newest whole checkpoint, if there is one. Collective.

        1. parameters and optimiser: optimizer.safetensors
        2. bank, statistics, teacher: ppar.safetensors
        3. step and data position: state.json; learning rate and stage follow from the step
        4. generator: rng.safetensors, where this rank had one

        Raises:
            ConfigError: the checkpoint's data, number of ranks or model is not this run's.
        """
        found = self.world.broadcast(checkpoint.find_checkpoint(self.path) if self.world.is_main else None)
        if found is None:
            return
        manifest = checkpoint.read_manifest(found)
        self._check_origin(manifest)
        try:
            self._restore(training, found)
        except (RuntimeError, KeyError, ValueError, OSError) as error:
            if manifest["config_sha256"] == self.plan.facts()["config_sha256"]:
                raise
            raise ConfigError(
                f"{found} does not fit the changed configuration: {reason(error)}. Give another run.dir"
            ) from None
        rng = load_file(found / RNG_FILE).get(f"rank-{self.world.rank:05d}")
        if rng is not None:
            torch.set_rng_state(rng)
        if self.world.is_main:
            log.info("resumed from %s, the newest whole checkpoint: step %d", found, training.state.step)

    def _restore(self, training: Training, found: Path) -> None:
        self._load_engine(training, found)
        method = load_file(found / METHOD_FILE)
        if training.teacher is not None:
            named = {k.removeprefix(_TEACHER): v for k, v in method.items() if k.startswith(_TEACHER)}
            training.teacher.load_state_dict(named)
        training.objective.load_state_dict({k: v for k, v in method.items() if not k.startswith(_TEACHER)})
        stored = checkpoint.read_state(found)
        state = training.state = TrainState(**{name: stored[name] for name in asdict(training.state)})
        if state.samples_seen != state.step * self.plan.config.train.global_batch:
            raise ConfigError(
                f"{state.samples_seen} samples in {state.step} steps are no global batches of "
                f"{self.plan.config.train.global_batch}; keep train.global_batch"
            )

    def _load_engine(self, training: Training, found: Path) -> None:
        with tempfile.TemporaryDirectory() as name:
            for path, content in load_file(found / OPTIMIZER_FILE).items():
                (Path(name) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(name) / path).write_bytes(content.numpy().tobytes())
            training.engine.load(Path(name))

    def _check_origin(self, manifest: dict[str, Any]) -> None:
        before, stage = int(manifest["world_size"]), self.plan.config.engine.zero_stage
        if stage and before != self.world.world_size:
            raise ConfigError(
                f"a run with engine.zero_stage={stage} resumes on as many ranks as saved it, {before}, "
                f"got {self.world.world_size}; use --nproc {before}"
            )
        if manifest.get("text_sha256") != self.plan.facts()["text_sha256"]:
            raise ConfigError(
                f"text.file={self.plan.config.text.file} does not hold what {self.path} was trained with; "
                "restore the file, or give another run.dir"
            )
        now = self.plan.facts()["data"]
        changed = [name for name, fingerprint in now.items() if manifest["data"].get(name) != fingerprint]
        if changed:
            raise ConfigError(
                f"the data of {', '.join(changed)} is not what {self.path} was trained on; "
                "restore the shards, or give another run.dir"
            )


def _whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as safetensors wants them: contiguous, on the CPU, none sharing memory."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
