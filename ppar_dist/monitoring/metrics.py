"""The metrics of a whole run, carried by rank 0.

Every figure comes from the buffer that a step reduced over its ranks, so that one process carries the
figures of all. Base units; ratios from 0 to 1; labels are domains, classes, terms and groups only.

Counters count what happened in this process's time, so that after a resume the increase over a restart is
right; the progress of the run is ``ppar_progress_ratio`` of ``ppar_train_steps``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from prometheus_client import Gauge

from ppar_dist import __version__
from ppar_dist.config.schema import Config
from ppar_dist.monitoring.method import MethodMetrics
from ppar_dist.monitoring.registry import Registry, set_known
from ppar_dist.ppar.alignment import stage_at
from ppar_dist.ppar.diagnostics import Detail, Figures
from ppar_dist.run.state import TrainState

_STEP_SECONDS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 60)
_CHECKPOINT_SECONDS = (0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)


class RunMetrics:
    """The metrics of one run, on the registry that rank 0's endpoint serves."""

    def __init__(
        self, registry: Registry, config: Config, domains: Sequence[str], classes: Sequence[str], ranks: int
    ) -> None:
        """Register everything at zero.

        Args:
            registry: of this process.
            config: of the run; what it plans is published beside what happens.
            domains: names of the M source domains, in the order of the figures.
            classes: names of the K classes.
            ranks: of the job.
        """
        self.domains, self.classes = tuple(domains), tuple(classes)
        self._registry = registry
        self._total, self._boundaries = config.train.steps, config.ppar.alignment.boundaries
        registry.constant("run_info", "Constant 1; its labels tell the run.", **_run_info(config, ranks))
        self.method = MethodMetrics(registry, config.ppar, domains, classes)
        self._register_plan(registry, config)
        self._register_steps(registry)
        self._register_faults(registry)
        self._register_checkpoints(registry)
        self.miou = registry.gauge("miou", "Mean intersection over union on a held-out domain.", "target")
        self.iou = registry.gauge(
            "iou", "Intersection over union of a class on a held-out domain.", "target", "class"
        )

    def publish_start(self, state: TrainState, detail: Detail | None) -> None:
        """Publish the state of the run before its first step in this process.

        Args:
            state: of the run.
            detail: figures of the method's state, of a run that resumes from a checkpoint.
        """
        self._place(state)
        if state.step:  # of the last step, as after every other
            self.method.stage.set(stage_at((state.step - 1) / self._total, self._boundaries))
        if detail is not None:
            self.method.publish_state(detail, count_cells=False)

    def publish_step(
        self,
        state: TrainState,
        figures: Figures,
        bad: Mapping[tuple[str, str], int],
        learning_rates: Mapping[str, float],
        grad_norm: float,
        seconds: float,
    ) -> None:
        """Publish the figures of a finished step.

        Args:
            state: the step led to it. A step that is done again, after a rollback, is counted again.
            figures: reduced figures of the global batch.
            bad: its bad samples by (domain, reason).
            learning_rates: by parameter group.
            grad_norm: before clipping; nan leaves the last value.
            seconds: wall time of the step, waiting for data included.
        """
        self._place(state)
        self.steps.inc()
        self.step_duration.observe(seconds)
        set_known(self.grad_norm, grad_norm)
        for group, rate in learning_rates.items():
            self.learning_rate.labels(group).set(rate)
        for term, value in figures.loss.items():
            self.loss.labels(term).set(value)  # a nan stays: it says that training broke
        for domain, count in zip(self.domains, figures.samples, strict=True):
            self.samples.labels(domain).inc(count)
        for (domain, reason), count in bad.items():
            self.bad_samples.labels(domain, reason).inc(count)
        if not figures.finite:
            self.skipped.inc()
        self.method.publish(figures)

    def publish_speed(self, images_per_second: float, mfu: float | None) -> None:
        """Publish what the job's devices do.

        Args:
            images_per_second: of the last step, over all ranks.
            mfu: share of the peak, 1 is all of it; None where that is unknown: then it is not served at all.
        """
        self.images_per_second.set(images_per_second)
        if mfu is not None:
            self._mfu.set(mfu)

    def follow_goodput(self, ratio: Callable[[], float]) -> None:
        """Publish goodput, asked for at each scrape: it falls while no step ends."""
        self.goodput.set_function(ratio)

    @cached_property
    def _mfu(self) -> Gauge:
        return self._registry.gauge(
            "mfu_ratio", "Model FLOPs of the last step, of what the devices of all ranks could do."
        )

    def publish_rollback(self, state: TrainState) -> None:
        """Publish that the run has returned to ``state``."""
        self.rollbacks.inc()
        self._place(state)

    def publish_checkpoint(self, seconds: float, stall: float) -> None:
        """Publish that a checkpoint was written in ``seconds``; it blocked training for ``stall`` seconds."""
        self.checkpoint_duration.observe(seconds)
        self.checkpoint_stall.set(stall)
        self.checkpoint_success.set(time.time())

    def publish_iou(self, target: str, miou: float | None, iou: Mapping[str, float | None]) -> None:
        """Publish what the model scores on a target, or on the held-out part of a source.

        Args:
            target: its name.
            miou: from 0 to 1; None or nan if no class occurs.
            iou: by class; None or nan for a class that does not occur.
        """
        set_known(self.miou.labels(target), miou)
        for name, value in iou.items():
            set_known(self.iou.labels(target, name), value)

    def _place(self, state: TrainState) -> None:
        self.progress.set(state.step / self._total)
        self.streak.set(state.non_finite)

    def _register_plan(self, registry: Registry, config: Config) -> None:
        self.progress = registry.gauge("progress_ratio", "Steps done, of those planned.")
        planned = registry.gauge("train_steps", "Steps planned from the start to the end of the run.")
        planned.set(config.train.steps)
        interval = registry.gauge(
            "checkpoint_interval_steps", "Steps from checkpoint to checkpoint; 0: only at the end."
        )
        interval.set(config.checkpoint.every)

    def _register_steps(self, registry: Registry) -> None:
        self.loss = registry.gauge("loss", "Loss terms of the global batch, before their weights.", "term")
        self.learning_rate = registry.gauge("learning_rate", "Current learning rate.", "group")
        self.grad_norm = registry.gauge("grad_norm", "Norm of the global gradient before clipping.")
        self.steps = registry.counter("steps", "Optimiser steps done by this process.")
        self.samples = registry.counter("samples", "Samples trained on in this process's time.", "domain")
        self.step_duration = registry.histogram(
            "step_duration_seconds", "Wall time of a step, waiting for data included.", _STEP_SECONDS
        )
        self.images_per_second = registry.gauge(
            "images_per_second", "Images of the last step over its time, of all ranks together."
        )
        self.goodput = registry.gauge(
            "goodput_ratio",
            "Training seconds of steps that still count, of the time since the run's first start.",
        )
        for domain in self.domains:
            self.samples.labels(domain)

    def _register_faults(self, registry: Registry) -> None:
        self.skipped = registry.counter(
            "skipped_steps", "Steps that changed nothing: their result was not finite."
        )
        self.streak = registry.gauge("non_finite_streak", "Such steps in a row, up to now.")
        self.rollbacks = registry.counter("rollbacks", "Returns to a checkpoint after such steps.")
        self.bad_samples = registry.counter(
            "bad_samples", "Samples that another one replaced.", "domain", "reason"
        )
        self.resumes = registry.counter("resumes", "Times that this process resumed from a checkpoint.")

    def _register_checkpoints(self, registry: Registry) -> None:
        self.checkpoint_duration = registry.histogram(
            "checkpoint_duration_seconds", "Wall time of writing a checkpoint.", _CHECKPOINT_SECONDS
        )
        self.checkpoint_stall = registry.gauge(
            "checkpoint_stall_seconds", "How long the last checkpoint held up training."
        )
        self.checkpoint_success = registry.gauge(
            "checkpoint_last_success_timestamp_seconds",
            "When this process published its last checkpoint; 0 before the first.",
        )
        self.remote_step = registry.gauge(
            "remote_checkpoint_step", "Step of the newest checkpoint that checkpoint.remote holds."
        )
        self.checkpoint_failures = registry.counter(
            "checkpoint_failures", "Checkpoints that were not written."
        )


def run_name(config: Config) -> str:
    """What a run is called where several are watched."""
    return config.run.name or config.run.dir.name


def _run_info(config: Config, ranks: int) -> dict[str, str]:
    return {
        "version": __version__,
        "run": run_name(config),
        "backbone": config.model.backbone.name,
        "method": "ppar" if config.ppar.enabled else "plain",
        "classes": config.data.classes,
        "ranks": str(ranks),
    }
