"""Training: next batch, step, evaluate, publish.

One step makes one collective besides DeepSpeed's gradient reduction: the objective's flat buffer,
summed while the backward pass runs. Everything logged comes out of it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from itertools import islice

import torch

from ppar_dist.checkpoint import CheckpointError
from ppar_dist.config import Config, ConfigError
from ppar_dist.data.pipeline import Batch, train_loader
from ppar_dist.distributed import World
from ppar_dist.engine import Engine
from ppar_dist.evaluate import held_out
from ppar_dist.labels import class_set
from ppar_dist.losses import segmentation_loss
from ppar_dist.metrics import mean_iou
from ppar_dist.models.segmentor import build_segmentor
from ppar_dist.plan import Plan, make_plan
from ppar_dist.ppar.diagnostics import Figures
from ppar_dist.ppar.objective import Objective
from ppar_dist.ppar.teacher import build_teacher
from ppar_dist.runfolder import RunFolder, Training, TrainState
from ppar_dist.runlog import RunLog


class NonFiniteLoss(RuntimeError):
    """The global loss was not a number; no rank has updated its parameters."""


class Trainer:
    """One run on one rank."""

    def __init__(self, plan: Plan, world: World, accept_changes: bool = False) -> None:
        """Build model, objective and engine, then take up the newest checkpoint of ``run.dir``."""
        self.plan, self.config, self.world = plan, plan.config, world
        self.folder = RunFolder(plan, world)
        self.folder.claim(accept_changes)
        self.training = build_training(plan, world)
        self.folder.resume(self.training)
        self.folder.record()
        self.log = self._open_log()

    def _open_log(self) -> RunLog:
        """The run's records; what stops rank 0 from opening them (a port in use) stops every rank."""
        log, problem = None, None
        try:
            log = RunLog(self.plan, self.world, self.state.step)
        except ConfigError as error:
            problem = str(error)
        except OSError as error:
            problem = f"cannot write {error.filename}: {error.strerror}; give another run.dir"
        self.folder.refuse_together(problem)
        assert log is not None, "a rank without a problem has its log"
        return log

    @property
    def state(self) -> TrainState:
        """Where the run stands."""
        return self.training.state

    def fit(self) -> TrainState:
        """Train to the last step."""
        for batches, waited in self._steps():
            began = time.monotonic()
            figures = self.train_step(batches)
            seconds = time.monotonic() - began
            self.log.step(self.state.step, figures, self.training.engine, seconds, waited)
            is_best = self._is_due(self.config.train.eval_every) and self.evaluate()
            if self._is_due(self.config.checkpoint.every) or (is_best and self.config.checkpoint.keep_best):
                self.save()
        return self.state

    def train_step(self, batches: list[Batch]) -> Figures:
        """One optimiser step over this rank's micro-batches; returns figures of the global batch.

        Raises:
            NonFiniteLoss: on every rank alike, before any parameter was touched.
        """
        engine, objective, teacher = self.training.engine, self.training.objective, self.training.teacher
        torch.manual_seed(noise_seed(self.config.seed, self.state.step, self.world.rank))
        objective.begin_step(self.state.step / self.config.train.steps)
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            loss = self._loss(batch.to(self.world.device))
            if last:
                pending = self.world.start_sum(objective.buffer.flat)
            engine.backward(loss, last)
        pending.wait()
        figures = objective.end_step(detail=self.log.wants(self.state.step + 1))
        self._refuse_non_finite(figures)
        engine.step(self.state.step)
        if teacher is not None:
            teacher.follow(engine.module)
        self.state.step += 1
        self.state.samples_seen += self.config.train.global_batch
        return figures

    def _loss(self, batch: Batch) -> torch.Tensor:
        """The mean over a micro-batch of w_i (CE_i + Σ λ L_i)."""
        prediction = self.training.engine.forward(batch.images, self.config.ppar.enabled)
        terms = self.training.objective.terms(
            prediction.dense,
            batch.labels,
            batch.domains,
            segmentation_loss(prediction.logits, batch.labels),
            slots=batch.positions - self.state.samples_seen,
            teacher_dense=self._teacher_features(batch),
        )
        return terms.total.mean()

    def _teacher_features(self, batch: Batch) -> torch.Tensor | None:
        teacher = self.training.teacher
        if teacher is None or not teacher.is_due(self.state.step):
            return None
        return teacher.features(batch.images)

    def _refuse_non_finite(self, figures: Figures) -> None:
        if not figures.finite:
            raise NonFiniteLoss(
                f"step {self.state.step + 1} gave a loss of {figures.loss['total']}; parameters are as the "
                "step before left them. Lower optim.lr, or look at the samples of that step"
            )

    def _steps(self) -> Iterator[tuple[list[Batch], float]]:
        """This rank's micro-batches of each step to come, and the seconds it waited for them."""
        train, rank, ranks = self.config.train, self.world.rank, self.world.world_size
        stop = train.steps * train.global_batch
        loader = train_loader(self.config, self.plan.indexes, rank, ranks, self.state.samples_seen, stop)
        micro_batches = iter(loader)
        while self.state.step < train.steps:
            began = time.monotonic()
            batches = list(islice(micro_batches, self.plan.batching.accumulation))
            yield batches, time.monotonic() - began

    def _is_due(self, every: int) -> bool:
        """Every so many steps, and at the end."""
        step = self.state.step
        return step == self.config.train.steps or (every > 0 and step % every == 0)

    def evaluate(self) -> bool:
        """mIoU on the held-out part of the sources; remembers the best step, and says whether it is this."""
        if not self.config.data.holdout:
            return False
        world, model = self.world, self.training.engine.module.eval()
        counts = held_out(model, self.config, self.plan.indexes, world.rank, world.world_size, world.device)
        model.train()
        counts = world.sum(counts.to(world.device)).cpu()  # (M, K, K)
        names = (index.name for index in self.plan.indexes)
        per_domain = {name: mean_iou(matrix) for name, matrix in zip(names, counts, strict=True)}
        miou = mean_iou(counts.sum(0))
        is_best = miou > (-1.0 if self.state.best_miou is None else self.state.best_miou)  # nan never is
        if is_best:
            self.state.best_miou, self.state.best_step = miou, self.state.step
        self.log.evaluation(self.state.step, miou, per_domain)
        return is_best

    def save(self) -> None:
        """Publish a checkpoint; a failure before the last step is logged and training goes on."""
        began = time.monotonic()
        try:
            folder = self.folder.save(self.training)
        except CheckpointError as error:
            if self.state.step == self.config.train.steps:
                raise
            self.log.warn(str(error))
            return
        self.log.checkpoint(folder, time.monotonic() - began)

    def close(self) -> None:
        """Close the run's records."""
        self.log.close()


def noise_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the noise inside the model (drop path): another on each rank, the same after a resume."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little") >> 1


def build_training(plan: Plan, world: World) -> Training:
    """Model, engine, objective and teacher as ``plan`` describes them, at step 0."""
    config, classes = plan.config, class_set(plan.config.data.classes)
    torch.manual_seed(config.seed)
    segmentor, text = build_segmentor(config, classes)
    if world.device.type == "cpu" and any(isinstance(m, torch.nn.SyncBatchNorm) for m in segmentor.modules()):
        raise ConfigError("model.backbone.batch_norm=sync works on GPUs only; set it to frozen")
    engine = Engine(segmentor, segmentor.param_groups(config.optim), config, world)
    objective = Objective(
        config.ppar,
        text,
        num_domains=len(plan.indexes),
        num_classes=classes.num_classes,
        global_batch=config.train.global_batch,
        device=world.device,
    )
    teacher = build_teacher(segmentor, config.ppar.bank) if config.ppar.enabled else None
    return Training(engine, objective, teacher, TrainState())


def train(config: Config, world: World, accept_changes: bool = False) -> TrainState:
    """Train ``config`` on this rank, from the start or from the newest checkpoint, to the last step.

    Raises:
        ConfigError: the configuration cannot work with this data, run folder or number of ranks.
        NonFiniteLoss: a step gave no number.
        CheckpointError: the last checkpoint could not be written.
    """
    trainer = Trainer(make_plan(config, world.world_size), world, accept_changes)
    try:
        return trainer.fit()
    finally:
        trainer.close()
