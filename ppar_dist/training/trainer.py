"""Training: next batch, step, evaluate, publish; and what happens when one of these goes wrong.

One step makes one collective besides DeepSpeed's gradient reduction: the objective's flat buffer,
summed while the backward pass runs. All logged figures come from it, and everything that ranks must
agree on: bad samples, whether the step is finite, whether one of them was asked to stop.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from ppar_dist.checkpoint import CheckpointError, checkpoint_name
from ppar_dist.data import quarantine
from ppar_dist.data.loader import Batch, order_of, train_loader
from ppar_dist.data.shards import sample
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError
from ppar_dist.models.losses import segmentation_loss
from ppar_dist.monitoring.monitor import Monitor
from ppar_dist.ppar.diagnostics import Figures
from ppar_dist.ppar.objective import StepSettings
from ppar_dist.ppar.replica_check import ReplicaCheck
from ppar_dist.processes.signals import Preempted, Preemption, exit_code
from ppar_dist.run import paths
from ppar_dist.run.claim import RunClaim
from ppar_dist.run.early_stop import ends_early, is_over, note_score, reason
from ppar_dist.run.ledger import Ledger, next_attempt
from ppar_dist.run.origin import refuse_another_start
from ppar_dist.run.state import TrainState
from ppar_dist.training.checkpointing import Checkpointing
from ppar_dist.training.learner import build_learner
from ppar_dist.training.plan import RunPlan
from ppar_dist.training.precision import check_precision
from ppar_dist.training.profile import StepProfile
from ppar_dist.training.recorder import Recorder, bad_by_reason
from ppar_dist.training.resume import resume
from ppar_dist.training.source_passes import (
    measure_styles,
    refit_classifiers,
    score_held_out,
    survey,
)
from ppar_dist.training.step_batches import StepBatches
from ppar_dist.watchdog import Watchdog


class Trainer:
    """One run on one rank."""

    def __init__(
        self,
        plan: RunPlan,
        world: World,
        claim: RunClaim,
        preemption: Preemption,
        watch: Watchdog,
        monitor: Monitor,
    ) -> None:
        """Build what learns, and resume from the newest checkpoint of ``run.dir``. Collective.

        ``claim`` has been made: nothing is written into a folder that another job uses. The order matters:

        1. monitor: a rank can be watched while it builds and resumes, which may take minutes
        2. build: at step 0
        3. resume: from here on the state is known
        4. record: config.yaml is written only when nothing has refused to continue with it
        5. log: metric files open at the state, where records of later steps are dropped
        """
        self.plan, self.config, self.world = plan, plan.config, world
        self.preemption, self.watch = preemption, watch
        self.domains = [index.name for index in plan.indexes]
        self.order = order_of(self.config, plan.indexes)
        self.claim = claim
        is_new = not world.on_main(self.claim.has_checkpoints)
        check_precision(self.config, world, is_new)
        monitor.open(self.domains, plan.classes.classes, watch.report)
        self.learner = build_learner(plan, world, is_new)
        self.resumed_from = resume(self.learner, plan, world, self.claim)
        if self.resumed_from is not None:
            world.on_main(lambda: refuse_another_start(self.config, self.state))
        self.claim.record()
        self.log = Recorder(plan, world, self.state, monitor)
        world.on_main(lambda: self.log.open(self.state, self.learner.engine.module))
        self.replica_check = ReplicaCheck(world.world_size)
        if self.resumed_from is not None:
            detail = self.learner.objective.detail()
            self.replica_check.note(detail)
            self.log.resumed(self.state, self.resumed_from, detail)
        else:
            if self.state.started_from is not None:
                self.log.event("started from", 0, self.state.started_from["report"])
            self._survey()
        bad_samples = paths.rank_file(paths.quarantine(self.claim.path), world.rank)
        self.quarantine = quarantine.QuarantineLog(bad_samples, self.domains)
        self.checkpoints = Checkpointing(plan, world, self.claim, self.log, watch, self.resumed_from)
        self.checkpoints.catch_up(self.state)
        self.ledger = self._open_ledger()
        self.styles = measure_styles(plan, world, watch.alive)
        self.batches = StepBatches(iter(()), 0, world.device)  # see `_steps`
        self.profile = StepProfile(self.config, world, self.state.step)

    def _survey(self) -> None:
        """The first look at the labels; what is distrusted is said."""
        for line in survey(self.learner, self.plan, self.world, self.watch.alive):
            self.log.warn(line)

    def _refit_if_due(self) -> bool:
        """The classifiers' last fit, before they are evaluated and saved; whether it was made now."""
        if not (is_over(self.state, self.config.train) and self.state.lacks_refit(self.config.refit)):
            return False
        for line in refit_classifiers(self.learner, self.plan, self.world, self.watch):
            self.log.warn(line)
        return True

    def _open_ledger(self) -> Ledger | None:
        if not self.config.train.ledger:
            return None
        run = self.claim.path
        attempt = self.world.on_main(lambda: next_attempt(run))
        return Ledger(run, attempt, self.world.rank, self.world.world_size, self.state)

    @property
    def state(self) -> TrainState:
        """Where the run is."""
        return self.learner.state

    def fit(self) -> TrainState:
        """Train to the last step.

        Raises:
            Preempted: a rank was asked to stop; a checkpoint of the last step was saved.
            UserError: too many bad samples, or too many steps without a finite result.
            CheckpointError: the last checkpoint could not be written.
        """
        if self.resumed_from is not None:
            self._catch_up()
        for batches, waited in self._steps():
            began = time.monotonic()
            figures = self.train_step(batches)
            inside = self.batches.waited_s  # for data too, but of the step to come
            seconds = time.monotonic() - began - inside
            self.log.step(self.state, figures, self.learner.engine, seconds, waited + inside)
            self.profile.step()
            self._refit_if_due()
            self._refuse_too_many_bad()
            if self.state.non_finite >= self.config.faults.max_non_finite:
                self.roll_back()
            if figures.shared_counts["stop"]:
                self.stop()
            is_best = self._is_evaluation_due() and self._evaluate_or_end()
            if self._is_due(self.config.checkpoint.every) or (is_best and self.config.checkpoint.keep_best):
                self.checkpoints.save(self.learner)
            self.checkpoints.log_finished()
        self.checkpoints.end(self.learner)
        return self.state

    def _catch_up(self) -> None:
        """What the present step still lacks: the run was stopped after it, or now ends there."""
        fitted = self._refit_if_due()
        if self._is_evaluation_due() or (fitted and self.config.data.holdout > 0):
            self._evaluate_or_end()
        elif not fitted:
            return
        self.checkpoints.rewrite(self.learner)

    def train_step(self, batches: list[Batch]) -> Figures:
        """One optimiser step over this rank's micro-batches; returns figures of the global batch.

        Where the global loss or gradient is not finite, all ranks leave parameters, moments and statistics as
        they are; data position and step move on.
        """
        engine, objective, teacher = self.learner.engine, self.learner.objective, self.learner.teacher
        step = self.state.step
        torch.manual_seed(noise_seed(self.config.seed, step, self.world.rank))
        settings = objective.begin_step(step / self.config.train.steps)
        self._add_to_sync(batches)
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            self.watch.phase("forward", step + 1)
            loss = self._loss(batch.to(self.world.device), settings)
            if last:
                pending = self.world.start_sum(objective.buffer.flat)
            self.watch.phase("backward", step + 1)
            engine.backward(loss, last)
        self.batches.bring_next()  # while the device computes
        self.watch.phase("all-reduce", step + 1)
        pending.wait()
        self.watch.phase("step", step + 1)
        applied = self._apply(step)
        figures = objective.end_step(settings, detail=self.log.wants(step + 1), fold=applied)
        if self.replica_check.is_broken(figures.shared_counts["checksum"]):
            self.log.diverged(step)
        self.replica_check.note(figures.detail)
        if teacher is not None and applied:
            teacher.follow(engine.module)
        if self.learner.average is not None and applied:
            self.learner.average.follow(engine.module)
        consumed = dict(zip(self.domains, figures.samples, strict=True))
        bad = bad_by_reason(figures, self.domains)
        met = quarantine.bad_samples(self.order, self.state.samples_seen, figures.sample_attempts)
        named = [(self.domains[where.domain], where.sample) for where in met]
        self.state.advance(self.config.train.global_batch, applied, consumed, bad, named)
        return figures

    def _apply(self, step: int) -> bool:
        """Take the step, unless loss or gradient is not finite; all ranks decide the same."""
        if self.learner.objective.is_finite():
            return self.learner.engine.step(step)
        self.learner.engine.skip()
        return False

    def _add_to_sync(self, batches: list[Batch]) -> None:
        """Add to the step's sums what ranks must agree on, and write the ledger."""
        buffer = self.learner.objective.buffer
        if self.preemption.requested:
            buffer.view("stop").add_(1)
        buffer.add("checksum", self.replica_check.tell())
        for bad in (bad for batch in batches for bad in batch.bad):
            buffer.view("bad")[bad.domain, sample.REASONS.index(bad.reason)] += 1
            self.quarantine.write(bad)
        if self.ledger is not None:
            positions = [int(position) for batch in batches for position in batch.positions]
            rows = [row for batch in batches for row in zip(batch.domains.tolist(), batch.keys, strict=True)]
            samples = [f"{self.domains[domain]}/{key}" for domain, key in rows]
            self.ledger.write(self.state.step + 1, positions, samples)

    def _loss(self, batch: Batch, settings: StepSettings) -> Tensor:
        """The mean over a micro-batch of w_i (CE_i + Σ λ L_i)."""
        objective, labels = self.learner.objective, batch.labels
        images = batch.pictures()
        prediction = self.learner.engine.forward(images, self.config.ppar.enabled)
        likelihood = objective.label_likelihood(batch.domains)
        losses = objective.losses(
            settings,
            prediction.dense,
            labels,
            batch.domains,
            segmentation_loss(prediction.logits, labels, likelihood),
            batch_slots=batch.positions - self.state.samples_seen,
            teacher_dense=self._teacher_features(images),
            attempts=batch.attempts,
            label_likelihood=likelihood,
        )
        return losses.total.mean()

    def _teacher_features(self, images: Tensor) -> Tensor | None:
        teacher = self.learner.teacher
        if teacher is None or not teacher.is_due(self.state.step):
            return None
        return teacher.features(images)

    def _steps(self) -> Iterator[tuple[list[Batch], float]]:
        """This rank's micro-batches of each step to come, and the seconds it waited for them."""
        train, rank, ranks = self.config.train, self.world.rank, self.world.world_size
        expected: tuple[int, int] | None = None  # step and position to come, as far as the loader knows
        while self.state.step < train.steps and not ends_early(self.state, train):
            self.watch.phase("data", self.state.step + 1)
            began = time.monotonic()
            step, position = self.state.step, self.state.samples_seen
            if (step, position) != expected:  # at the start, and after a rollback
                stop = position + (train.steps - step) * train.global_batch
                bounds = (rank, ranks, position, stop)
                loader = train_loader(self.config, self.plan.indexes, *bounds, self.styles)
                self.batches = StepBatches(loader, self.plan.batching.accumulation, self.world.device)
            expected = step + 1, position + train.global_batch
            batches = self.batches.take()
            yield batches, time.monotonic() - began

    def _refuse_too_many_bad(self) -> None:
        """All ranks have the same counts, so all of them end. A sample of many epochs counts once."""
        bad = [len(self.state.bad_samples.get(domain, ())) for domain in self.domains]
        shares = self.order.shares
        seen = [min(self.state.consumed.get(share.name, 0), share.size) for share in shares]
        problem = quarantine.excess(bad, seen, self.domains, self.config.data.max_bad_ratio)
        if problem:
            raise UserError(problem)

    def roll_back(self) -> None:
        """Return to the newest checkpoint that the streak of non-finite steps cannot have spoiled.

        The data between it and now is stepped over; the checkpoint is written again and notes that.

        Raises:
            UserError: no such checkpoint exists, or the run has rolled back too often.
        """
        state, most = self.state, self.config.faults.max_rollbacks
        fault = f"{state.non_finite} steps in a row up to step {state.step} gave no finite loss or gradient"
        remedy = "lower optim.lr, or look at the samples of these steps"
        if len(state.rollbacks) >= most:
            raise UserError(f"{fault}, after {most} rollbacks (faults.max_rollbacks); {remedy}")
        self.watch.phase("roll back", state.step)
        if not self.checkpoints.go_back(self.learner, state.rollback_limit()):
            raise UserError(f"{fault}, and no checkpoint is older; {remedy}, or lower checkpoint.every")
        state.roll_back(self.learner.state)
        self.learner.state, done = state, state.rollbacks[-1]
        positions = f"positions {done.first_position} to {done.stop_position - 1} are stepped over"
        self.log.rolled_back(state, f"{fault}: back to step {done.to_step}, {positions}")
        if self.ledger is not None:
            self.ledger.close()
        self.ledger = self._open_ledger()
        self.checkpoints.rewrite_after_rollback(self.learner)

    def stop(self) -> None:
        """Save, and leave together with all ranks.

        Raises:
            Preempted: always.
        """
        signals = self.world.gather(self.preemption.signal)
        asked = {f"{number.name} at rank {rank}" for rank, number in enumerate(signals) if number}
        try:
            self.checkpoints.leave(self.learner, self.preemption)
        except CheckpointError as error:
            self.log.warn(f"{error}; the run ends with the checkpoint before")
        self.preemption.done()
        self.log.event("stopped", self.state.step, ", ".join(sorted(asked)))
        raise Preempted(exit_code(signals))

    def _is_due(self, every: int) -> bool:
        """Every so many steps, and at the end."""
        step = self.state.step
        return step == self.config.train.steps or (every > 0 and step % every == 0)

    def _is_evaluation_due(self) -> bool:
        state, due = self.state, self._is_due(self.config.train.eval_every)
        return due and self.config.data.holdout > 0 and state.evaluated_step != state.step

    def _evaluate_or_end(self) -> bool:
        """Evaluate, and where the run ends early with it, say so and fit the classifiers; as ``evaluate``."""
        is_best = self.evaluate()
        if not ends_early(self.state, self.config.train):
            return is_best
        if self._refit_if_due():
            is_best |= self.evaluate()
        step = self.state.best_step
        best = "none" if step is None else checkpoint_name(step)
        self.log.event("ended early", self.state.step, reason(self.state, self.config.train, best))
        return is_best

    def evaluate(self) -> bool:
        """mIoU on the held-out part of the sources; remembers the best step, and says whether it is this.

        Raises:
            UserError: on every rank, when too many of these samples are bad.
        """
        again = self.state.evaluated_step == self.state.step  # it counted before the last fit
        self.state.evaluated_step = self.state.step
        found = score_held_out(self.learner, self.plan, self.world, self.watch)
        if not again and not ends_early(self.state, self.config.train):
            note_score(self.state, found.miou, self.config.train)
        best = self.state.best_miou
        is_best = found.miou > (-1.0 if best is None else best)  # nan never is
        if is_best:
            self.state.best_miou, self.state.best_step = found.miou, self.state.step
        averaged = None
        if self.learner.average is not None:
            with self.learner.average.in_place(self.learner.engine.module):
                averaged = score_held_out(self.learner, self.plan, self.world, self.watch)
        self.log.evaluation(self.state.step, found, averaged)
        return is_best

    def close(self) -> None:
        """End the write under way and close the run's records."""
        self.profile.close()
        self.checkpoints.close()
        self.log.close()
        self.quarantine.close()
        if self.ledger is not None:
            self.ledger.close()


def noise_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the noise inside the model (drop path): another on each rank, the same after a resume."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little") >> 1
