"""What rank 0 records of a run: metric files, progress, and the Prometheus registry.

All figures arrive already reduced; nothing here communicates.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ppar_dist.checkpoint import Outcome, Uploaded
from ppar_dist.data.loader import order_of
from ppar_dist.data.shards.sample import REASONS
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError
from ppar_dist.evaluation.confusion import class_iou, mean_iou
from ppar_dist.files.jsonl import JsonLines, drop_after
from ppar_dist.monitoring.monitor import Monitor
from ppar_dist.monitoring.rank import device_memory
from ppar_dist.ppar.alignment import Stage, next_stage
from ppar_dist.ppar.diagnostics import Detail, Figures
from ppar_dist.processes import proc
from ppar_dist.run import paths
from ppar_dist.run.goodput import TimeLog
from ppar_dist.run.state import TrainState, bad_counts
from ppar_dist.training.engine import Engine
from ppar_dist.training.plan import RunPlan
from ppar_dist.training.source_passes import HeldOutScore
from ppar_dist.training.throughput import Throughput, throughput
from ppar_dist.view.progress import Progress, StepSummary

EVENTS, TIME = "events", "time"  # faults and resumes; goodput
_DIVERGED = (
    "the ranks' prototypes are no longer the same: memory or a device of one rank is faulty, or machines of "
    "several kinds round differently; compare ppar_prototype_checksum of the ranks"
)
_BY_STEP = ("train", "samples", "eval")  # the files whose records belong to a step

log = logging.getLogger(__name__)


def finite(value: Any) -> Any:
    """``value`` with non-finite floats as None, at any depth: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return value


def _broken(figures: Figures) -> str:
    """Which of a step's figures were not finite."""
    names = [name for name, value in figures.loss.items() if not math.isfinite(value)]
    return f"loss {', '.join(names)}" if names else "gradient"


def bad_by_reason(figures: Figures, domains: Sequence[str]) -> dict[tuple[str, str], int]:
    """How many samples of a step were bad, by domain and reason, without zeros."""
    return bad_counts(figures.shared_counts["bad"].tolist(), domains, REASONS)


def named_counts(figures: Figures, domains: Sequence[str]) -> dict[str, float]:
    """What ranks counted besides a step's figures, ``stop`` and ``bad/<domain>/<reason>``, without zeros."""
    bad, stop = bad_by_reason(figures, domains), float(figures.shared_counts["stop"])
    named = {f"bad/{domain}/{reason}": float(count) for (domain, reason), count in bad.items()}
    return ({"stop": stop} if stop else {}) | named


class Recorder:
    """Rank 0's record of a run. On other ranks every method does nothing but for the rank's own metrics."""

    def __init__(self, plan: RunPlan, world: World, state: TrainState, monitor: Monitor) -> None:
        """The run is at ``state``; nothing is written before ``open``."""
        self._plan, self._world, self._monitor = plan, world, monitor
        self._diverged = False  # logged once, counted each time
        config = plan.config
        self._total, self._every = config.train.steps, config.train.log_every
        if not world.is_main:
            return
        self._domains = tuple(index.name for index in plan.indexes)
        self._classes = plan.classes.classes
        self._order = order_of(config, plan.indexes)
        self._throughput = Throughput(config.train.global_batch)
        self.progress = Progress(self._total, state.step, self._every, self._speed)
        assert monitor.run is not None, "the monitor is open"
        self._metrics = monitor.run

    def open(self, state: TrainState, model: nn.Module) -> None:
        """Open the metric files at ``state``, and print the plan and where metrics are served; on rank 0.

        ``model`` is asked what an image costs it.

        Raises:
            UserError: a file cannot be written.
        """
        try:
            self._files = self._open(state)
            path = paths.metrics_file(self._plan.config.run.dir, TIME)
            self._time = TimeLog(path, proc.started(), state.step)
        except OSError as error:
            text = f"cannot write {error.filename}: {error.strerror}; give another run.dir"
            raise UserError(text) from None
        if self._monitor.trackers is not None:
            self._monitor.trackers.start(state.step)
        self._metrics.follow_goodput(self._time.ratio)
        self._throughput = throughput(self._plan.config, self._world, model)
        for line in [*self._plan.lines(), *self._throughput.lines()]:
            self.progress.say(line)
        if self._monitor.url is not None:
            self.progress.say(f"metrics: {self._monitor.url}")

    def rewind(self, state: TrainState) -> None:
        """Open the metric files at ``state``: records of later steps, which will be done again, are dropped.

        What happened stays: ``events.jsonl`` loses nothing. Where storage fails the records are kept as they
        are: of two for one step the later counts.
        """
        if not self._world.is_main:
            return
        self.progress.rewind(state.step)
        try:
            files = self._open(state)
        except OSError as error:
            log.warning("cannot rewrite %s: %s", error.filename, error.strerror)
            return
        for file in self._files.values():
            file.close()
        self._files = files
        if self._monitor.trackers is not None:
            self._monitor.trackers.rewind(state.step)

    def _open(self, state: TrainState) -> dict[str, JsonLines]:
        run, files = self._plan.config.run.dir, {}
        for name in (*_BY_STEP, EVENTS):
            path = paths.metrics_file(run, name)
            drop_after(path, state.step if name in _BY_STEP else None)
            files[name] = JsonLines(path)
            files[name].open()
        return files

    def wants(self, step: int) -> bool:
        """Whether ``step`` is logged; the same on every rank."""
        return step == 1 or step % self._every == 0 or step == self._total

    def step(
        self, state: TrainState, figures: Figures, engine: Engine, seconds: float, waited: float
    ) -> None:
        """Record the step that led to ``state``, which took ``seconds`` after ``waited`` for its data."""
        self._monitor.rank.publish_step(waited)
        if figures.detail is not None:
            self._monitor.rank.publish_checksum(figures.detail.prototype_checksum)
        if not self._world.is_main:
            return
        step = state.step
        rates, norm = engine.learning_rates(), engine.grad_norm()
        speed = self._throughput.images_per_second(seconds + waited)
        bad = bad_by_reason(figures, self._domains)
        self._metrics.publish_step(state, figures, bad, rates, norm, seconds + waited)
        self._metrics.publish_speed(speed, self._throughput.mfu(speed))
        self._time.add(step, seconds)
        if not figures.finite:
            self.event(
                "skipped", step, f"the result was not finite, nothing was changed ({_broken(figures)})"
            )
        self.progress.step(step, self._summary(step, figures), waited)
        if not self.wants(step):
            return
        record = {"step": step, "samples_seen": state.samples_seen, "seconds": seconds, "data_wait": waited}
        record |= self._hardware(speed)
        record |= {f"lr/{name}": rate for name, rate in rates.items()}
        record |= {"grad_norm": norm} | figures.named(self._domains, self._classes)
        record |= named_counts(figures, self._domains)
        self._files["train"].write(finite(record))
        self._files["samples"].write(finite({"step": step, "samples": self._sample_rows(state, figures)}))
        self._time.mark()

    def _hardware(self, images_per_second: float) -> dict[str, Any]:
        """What a step says of the machine: MFU and memory of rank 0's GPU only where they are known."""
        mfu, memory = self._throughput.mfu(images_per_second), device_memory(self._world.device)
        record = {"images_per_second": images_per_second}
        record |= {} if mfu is None else {"mfu": mfu}
        return record | ({} if memory is None else {"device_memory_peak": memory.peak})

    def _speed(self, steps_per_second: float) -> list[str]:
        """The same in words, at the pace of the last steps."""
        images = steps_per_second * self._throughput.images
        mfu, memory = self._throughput.mfu(images), device_memory(self._world.device)
        cells = [f"{images:.1f} images/s"]
        cells += [] if mfu is None else [f"MFU {100 * mfu:.1f}%"]
        return (
            cells
            if memory is None
            else [*cells, f"GPU {memory.peak / 2**30:.1f}/{memory.total / 2**30:.1f} GiB"]
        )

    def mark(self) -> None:
        """Record the time up to the present step, to which the run may come back."""
        if self._world.is_main:
            self._time.mark()

    def diverged(self, step: int) -> None:
        """Record, on the rank that sees it, that the ranks' prototypes differed after ``step``."""
        self._monitor.rank.mismatches.inc()
        if not self._diverged:
            self._diverged = True
            self.event("diverged", step, _DIVERGED)

    def rolled_back(self, state: TrainState, text: str) -> None:
        """Record that the run has returned to ``state``, and why."""
        self.rewind(state)
        if self._world.is_main:
            self._metrics.publish_rollback(state)
            self._time.go_back(state.step)
        self.event("rolled back", state.rollbacks[-1].at_step, text)

    def event(self, kind: str, step: int, text: str) -> None:
        """Record and print something that the report lists under faults and resumes."""
        if not self._world.is_main:
            return
        self._files[EVENTS].write({"time": time.time(), "kind": kind, "step": step, "text": text})
        self.progress.say(f"step {step}: {kind}: {text}")

    def resumed(self, state: TrainState, folder: Path, detail: Detail | None) -> None:
        """Record that the run resumed from a checkpoint, with the method's state as in ``detail``."""
        if detail is not None:
            self._monitor.rank.publish_checksum(detail.prototype_checksum)
        if not self._world.is_main:
            return
        self._metrics.resumes.inc()
        self._metrics.publish_start(state, detail)
        self.event("resumed", state.step, f"from {folder.name} on {self._world.world_size} ranks")

    def _summary(self, step: int, figures: Figures) -> StepSummary:
        ppar = self._plan.config.ppar
        if not ppar.enabled:
            return StepSummary(figures.loss)
        stage = Stage(figures.stage)
        weights = dict(zip(self._domains, figures.weight_mean, strict=True))
        found = next_stage(step - 1, self._total, ppar.alignment.boundaries)
        following = (found[0].name.lower(), found[1]) if found is not None else None
        return StepSummary(figures.loss, stage.name.lower(), following, figures.ess_ratio, weights)

    def _sample_rows(self, state: TrainState, figures: Figures) -> list[dict[str, Any]]:
        """Weight and reliability of every sample of the global batch, by name."""
        first = state.samples_seen - len(figures.sample_weights)
        columns = zip(
            figures.sample_weights, figures.sample_reliability, figures.sample_attempts, strict=True
        )
        rows = []
        for position, (weight, reliability, attempt) in enumerate(columns, start=first):
            where = self._order.locate(position, attempt)
            index = self._plan.indexes[where.domain]
            rows.append(
                {
                    "position": position,
                    "domain": index.name,
                    "sample": where.sample,
                    "key": index.key(where.sample),
                    "weight": weight,
                    "reliability": reliability,
                }
            )
        return rows

    def evaluation(self, step: int, raw: HeldOutScore, averaged: HeldOutScore | None = None) -> None:
        """Record what the model scores on held-out source data.

        Args:
            step: of the model.
            raw: with the weights of the last step.
            averaged: with their moving average, where there is one.
        """
        if not self._world.is_main:
            return
        miou, counts, left_out = raw.miou, raw.counts, raw.left_out
        per_domain = self._by_domain(counts)
        record: dict[str, Any] = {"step": step, "miou": miou, "domains": per_domain}
        record["confusion"] = counts.sum(0).tolist()  # rows are labels
        beside = ""
        if averaged is not None:
            record["averaged"] = {"miou": averaged.miou, "domains": self._by_domain(averaged.counts)}
            beside = f", averaged {100 * averaged.miou:.1f}"
        self._files["eval"].write(finite(record | ({"left_out": left_out} if left_out else {})))
        for (name, value), matrix in zip(per_domain.items(), counts, strict=True):
            iou = dict(zip(self._classes, class_iou(matrix).tolist(), strict=True))
            self._metrics.publish_iou(name, value, iou)
        missing = f" ({sum(left_out.values())} bad samples left out)" if left_out else ""
        self.progress.note("held-out mIoU", f"{100 * miou:.1f}")
        self.progress.say(f"step {step}: held-out source mIoU {100 * miou:.1f}{beside}{missing}")

    def _by_domain(self, counts: Tensor) -> dict[str, float]:
        return {name: mean_iou(matrix) for name, matrix in zip(self._domains, counts, strict=True)}

    def checkpoint(self, outcome: Outcome, stall: float) -> None:
        """Record how the writing of a checkpoint ended, and for how many seconds it blocked training."""
        if not self._world.is_main:
            return
        if outcome.folder is None:
            self._metrics.checkpoint_failures.inc()
            self.event("checkpoint failed", outcome.step, f"{outcome.error}; training continues")
            return
        self._metrics.publish_checkpoint(outcome.seconds, stall)
        self.progress.note("checkpoint", f"{outcome.step}")
        self.progress.say(
            f"checkpoint {outcome.folder} ({outcome.seconds:.1f} s, training blocked for {stall:.2f} s)"
        )

    def uploaded(self, outcome: Uploaded, newest: int | None) -> None:
        """Record how a checkpoint's copy to the remote ended; ``newest``: the last step safe there."""
        if not self._world.is_main:
            return
        place = self._plan.config.checkpoint.remote
        if outcome.error is not None:
            self._metrics.checkpoint_failures.inc()
            safe = "nothing of this job" if newest is None else f"step {newest}"
            text = f"{outcome.error}; {place} is behind, and holds {safe}; training continues"
            self.event("upload failed", outcome.step, text)
            return
        if not outcome.is_earlier:
            self._metrics.remote_step.set(outcome.step)
        self.progress.say(
            f"checkpoint of step {outcome.step} is in {place} ({outcome.seconds:.1f} s in the background, "
            f"{outcome.bytes / 1e6:.1f} MB sent)"
        )

    def warn(self, text: str) -> None:
        """Log what went wrong without ending the run."""
        if self._world.is_main:
            log.warning("%s", text)

    def close(self) -> None:
        """Close the files and the progress bar, and say what the time went into."""
        if not self._world.is_main:
            return
        self._time.close()
        for file in self._files.values():
            file.close()
        self.progress.close()
        if sentence := self._time.total.sentence():
            self.progress.say(sentence)
