"""What learns: model and optimiser, the method's state, its teacher, and where the run is."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from ppar_dist.config.schema import Config
from ppar_dist.data.shards import sample
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError
from ppar_dist.models.average import WeightAverage
from ppar_dist.models.segmentor import Segmentor, build_segmentor
from ppar_dist.models.weight_file import LoadReport, named
from ppar_dist.ppar.objective import Objective
from ppar_dist.ppar.replica_check import ReplicaCheck
from ppar_dist.ppar.teacher import Teacher, build_teacher
from ppar_dist.run.state import TrainState
from ppar_dist.training.engine import Engine
from ppar_dist.training.initialise import initialise
from ppar_dist.training.parts import compile_parts, recompute
from ppar_dist.training.plan import RunPlan

log = logging.getLogger(__name__)


@dataclass
class Learner:
    """Everything that a trainer changes and a checkpoint restores."""

    engine: Engine
    objective: Objective
    teacher: Teacher | None
    state: TrainState
    average: WeightAverage | None = None


def build_learner(plan: RunPlan, world: World, is_new: bool = True) -> Learner:
    """Model, engine, objective and teacher as ``plan`` describes them, at step 0. Collective.

    Only what ``is_new`` reads ``init_from``: a checkpoint brings the weights of another.
    """
    config, classes = plan.config, plan.classes
    torch.manual_seed(config.seed)
    segmentor, text = build_segmentor(config, classes)
    if world.is_main and segmentor.backbone.report is not None:
        _log_weights(segmentor.backbone.report)
    if synced := sum(isinstance(module, torch.nn.SyncBatchNorm) for module in segmentor.modules()):
        if world.device.type == "cpu":
            raise UserError("model.backbone.batch_norm=sync works on GPUs only; set it to frozen")
        if world.is_main and world.world_size > 1:
            log.warning(
                "model.backbone.batch_norm=sync: the ranks wait for each other in %d layers, forward and "
                "backward; frozen waits in none",
                synced,
            )
    if world.is_main and segmentor.backbone.adapters is not None:
        log.info("adapters: %s", segmentor.backbone.adapters.text())
    state = TrainState()
    if is_new and config.init_from is not None:
        found, origin = initialise(segmentor, config, classes, world), config.init_from
        state.started_from = {
            "checkpoint": found.checkpoint,
            "sha256": found.sha256,
            "report": found.text(),
            "origin": str(origin.absolute() if isinstance(origin, Path) else origin),
        }
    _keep_frozen(segmentor, config, world)
    segmentor.bf16 = config.engine.precision == "bf16"  # of its copy, the teacher, too
    if config.model.backbone.checkpointing:
        recompute(segmentor)
    engine = Engine(segmentor, segmentor.param_groups(config.optim), config, world)
    objective = Objective(
        config.ppar,
        text,
        num_domains=len(plan.indexes),
        num_classes=classes.num_classes,
        global_batch=config.train.global_batch,
        device=world.device,
        shared_counts={
            "stop": (1,),  # ranks that were asked to stop
            "checksum": (ReplicaCheck.PIECES,),
            "bad": (len(plan.indexes), len(sample.REASONS)),  # bad samples by domain and reason
        },
    )
    teacher = build_teacher(segmentor, config.ppar.bank) if config.ppar.enabled else None
    if config.engine.compile:
        compile_parts(segmentor)
        if teacher is not None:
            compile_parts(teacher.copy)
    momentum = config.train.weight_average
    average = None if momentum is None else WeightAverage(engine.module, momentum)
    return Learner(engine, objective, teacher, state, average)


def _keep_frozen(segmentor: Segmentor, config: Config, world: World) -> None:
    """Keep what is frozen in the dtype of the configuration, once it has its values."""
    if config.model.backbone.frozen_dtype == "bfloat16":
        kept = segmentor.backbone.keep_frozen_in_bf16()
        if world.is_main:
            log.info("%s", kept.text())
            if config.engine.precision == "fp32" and config.model.backbone.trainable in ("lora", "norm"):
                log.warning(
                    "model.backbone.frozen_dtype=bfloat16 under engine.precision=fp32: a step holds float32 "
                    "copies of the frozen matrices too, more memory than float32 takes; under bf16 it saves"
                )


def _log_weights(report: LoadReport) -> None:
    log.info("weights of %s: %s", report.path, report.text())
    if report.zeros:
        log.warning(
            "weights of %s are 0 throughout in %s; is the file whole?", report.path, named(report.zeros)
        )
