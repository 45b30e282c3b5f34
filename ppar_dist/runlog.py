"""What rank 0 says about a run: metric files, progress, and the Prometheus registry.

All figures arrive already reduced; nothing here communicates.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

from ppar_dist.checkpoint import Outcome
from ppar_dist.data.order import Order
from ppar_dist.data.pipeline import training_shares
from ppar_dist.distributed import World
from ppar_dist.engine import Engine
from ppar_dist.jsonlines import JsonLines
from ppar_dist.labels import class_set
from ppar_dist.monitoring import endpoint
from ppar_dist.monitoring.metrics import RunMetrics
from ppar_dist.plan import Plan
from ppar_dist.ppar.alignment import Stage
from ppar_dist.ppar.diagnostics import Figures
from ppar_dist.terminal import Progress
from ppar_dist.trainstate import TrainState, bad_counts

EVENTS = "events"  # faults and resumes
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
    """Which of a step's figures were no numbers."""
    names = [name for name, value in figures.loss.items() if not math.isfinite(value)]
    return f"loss {', '.join(names)}" if names else "gradient"


def _run_info(plan: Plan) -> dict[str, str]:
    config = plan.config
    return {
        "run": config.run.name or config.run.dir.name,
        "backbone": config.model.backbone.name,
        "method": "ppar" if config.ppar.enabled else "plain",
        "classes": config.data.classes,
    }


class RunLog:
    """Rank 0's record of a run. On other ranks every method does nothing."""

    def __init__(self, plan: Plan, world: World, state: TrainState) -> None:
        """Open the files of ``run.dir`` at ``state``, start the endpoint and print the plan."""
        self._plan, self._world = plan, world
        config = plan.config
        self._total, self._every = config.train.steps, config.train.log_every
        if not world.is_main:
            return
        self._domains = tuple(index.name for index in plan.indexes)
        self._classes = class_set(config.data.classes).classes
        shares = training_shares(config, plan.indexes)
        self._order = Order(shares, config.seed, config.data.block, config.data.window)
        self.progress = Progress(self._total, state.step, self._every)
        self._files = self._open(state)
        self._metrics = RunMetrics(self._domains, self._classes, _run_info(plan))
        self._endpoint = self._serve(config.monitoring) if config.monitoring.enabled else None
        for line in plan.lines():
            self.progress.say(line)
        if self._endpoint is not None:
            self.progress.say(f"metrics: {self._endpoint.url}")

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

    def _open(self, state: TrainState) -> dict[str, JsonLines]:
        folder = self._plan.config.run.dir / "metrics"
        files = {name: JsonLines(folder / f"{name}.jsonl", state.step) for name in _BY_STEP}
        return files | {EVENTS: JsonLines(folder / f"{EVENTS}.jsonl", None)}

    def _serve(self, monitoring: Any) -> endpoint.Endpoint:
        return endpoint.start(
            monitoring.address, monitoring.port + self._world.local_rank, self._metrics.registry
        )

    def wants(self, step: int) -> bool:
        """Whether ``step`` is one that is written down; every rank answers alike."""
        return step == 1 or step % self._every == 0 or step == self._total

    def step(
        self, state: TrainState, figures: Figures, engine: Engine, seconds: float, waited: float
    ) -> None:
        """Record the step that led to ``state``, which took ``seconds`` after ``waited`` for its data."""
        if not self._world.is_main:
            return
        step = state.step
        self._metrics.publish_step(
            step, figures, engine.learning_rates(), engine.grad_norm(), seconds + waited, waited
        )
        if not figures.finite:
            self._metrics.skipped.inc()
            self.event(
                "skipped", step, f"the result was not finite, nothing was changed ({_broken(figures)})"
            )
        for (domain, reason), count in bad_counts(figures.extras).items():
            self._metrics.bad_samples.labels(domain, reason).inc(count)
        self.progress.step(step, self._facts(figures))
        if not self.wants(step):
            return
        record = {"step": step, "samples_seen": state.samples_seen, "seconds": seconds, "data_wait": waited}
        record |= {f"lr/{name}": rate for name, rate in engine.learning_rates().items()}
        record |= {"grad_norm": engine.grad_norm()} | figures.named(self._domains, self._classes)
        self._files["train"].write(finite(record))
        self._files["samples"].write(finite({"step": step, "samples": self._sample_rows(state, figures)}))

    def event(self, kind: str, step: int, text: str) -> None:
        """Record, and say, something that the report lists under faults and resumes."""
        if not self._world.is_main:
            return
        self._files[EVENTS].write({"time": time.time(), "kind": kind, "step": step, "text": text})
        self.progress.say(f"step {step}: {kind}: {text}")

    def resumed(self, state: TrainState, folder: Path) -> None:
        """Record that the run goes on from a checkpoint."""
        if not self._world.is_main:
            return
        self._metrics.resumes.inc()
        self.event("resumed", state.step, f"from {folder.name} on {self._world.world_size} ranks")

    def _facts(self, figures: Figures) -> dict[str, str]:
        facts = {"loss": f"{figures.loss['total']:.3f}"}
        if self._plan.config.ppar.enabled:
            facts |= {"stage": Stage(figures.stage).name.lower(), "ess": f"{figures.ess_ratio:.2f}"}
        return facts

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

    def evaluation(
        self, step: int, miou: float, per_domain: dict[str, float], left_out: dict[str, int]
    ) -> None:
        """Record mIoU on held-out source data, and by domain how many samples were left out, if any."""
        if not self._world.is_main:
            return
        record = {"step": step, "miou": miou, "domains": per_domain}
        self._files["eval"].write(finite(record | ({"left_out": left_out} if left_out else {})))
        for name, value in per_domain.items():
            self._metrics.publish_miou(name, value)
        missing = f" ({sum(left_out.values())} bad samples left out)" if left_out else ""
        self.progress.say(f"step {step}: held-out source mIoU {100 * miou:.1f}{missing}")

    def checkpoint(self, outcome: Outcome, stall: float) -> None:
        """Record how the writing of a checkpoint ended, and for how long it held up training."""
        if not self._world.is_main:
            return
        if outcome.folder is None:
            self._metrics.checkpoint_failures.inc()
            self.event("checkpoint failed", outcome.step, f"{outcome.error}; training goes on")
            return
        self._metrics.publish_checkpoint(outcome.seconds, stall)
        self.progress.say(
            f"checkpoint {outcome.folder} ({outcome.seconds:.1f} s, training stood still for {stall:.2f} s)"
        )

    def warn(self, text: str) -> None:
        """Say what went wrong without ending the run."""
        if self._world.is_main:
            log.warning("%s", text)

    def close(self) -> None:
        """End files, bar and endpoint."""
        if not self._world.is_main:
            return
        for file in self._files.values():
            file.close()
        self.progress.close()
        if self._endpoint is not None:
            self._endpoint.stop()
