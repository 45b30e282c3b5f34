"""The state of a run: everything that is neither a tensor nor a file. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ppar_dist.config.method_section import RefitConfig


@dataclass(frozen=True)
class Rollback:
    """A return to a checkpoint after steps without a finite result."""

    at_step: int  # the last step before it
    to_step: int  # the checkpoint's
    first_position: int  # of the data stepped over
    stop_position: int


@dataclass
class TrainState:
    """The state of a run. The whole state of the data is ``samples_seen``, the next position.

    ``step`` counts optimiser steps, those skipped included. The data between a checkpoint and the end
    of the steps that made the run roll back to it is stepped over, so
    ``samples_seen == step * global batch + stepped_over``.
    """

    step: int = 0
    samples_seen: int = 0
    best_miou: float | None = None  # on held-out source data
    best_step: int | None = None
    evaluated_step: int | None = None  # the last one
    consumed: dict[str, int] = field(default_factory=dict)  # positions by domain
    bad: dict[str, dict[str, int]] = field(default_factory=dict)  # replacements by domain and reason
    bad_samples: dict[str, set[int]] = field(default_factory=dict)  # each bad sample once, by domain
    skipped: list[int] = field(
        default_factory=list
    )  # steps that changed nothing: their result was not finite
    non_finite: int = 0  # such steps in a row, up to now
    rollbacks: list[Rollback] = field(default_factory=list)
    stepped_over: int = 0  # positions
    risen_to: float | None = None  # mIoU on held-out source data, at its last rise
    evaluations_since: int = 0  # without a rise; they end a run that may stop early
    started_from: dict[str, str] | None = None  # the checkpoint whose weights it began with: name, sha256
    refitted: dict[str, Any] | None = None  # the step of the last refit, and what it fitted by

    def advance(
        self,
        global_batch: int,
        applied: bool,
        consumed: Mapping[str, int],
        bad: Mapping[tuple[str, str], int],
        bad_samples: Iterable[tuple[str, int]] = (),
    ) -> None:
        """Count a finished step.

        Args:
            global_batch: positions of a step.
            applied: whether it changed anything.
            consumed: samples of the step by domain.
            bad: how often the step met a bad sample, by domain and reason.
            bad_samples: domain and number of each of them, also of one that was met before.
        """
        self.step += 1
        self.samples_seen += global_batch
        for name, count in consumed.items():
            self.consumed[name] = self.consumed.get(name, 0) + count
        for (domain, reason), count in bad.items():
            mine = self.bad.setdefault(domain, {})
            mine[reason] = mine.get(reason, 0) + count
        for domain, sample in bad_samples:
            self.bad_samples.setdefault(domain, set()).add(sample)
        self.non_finite = 0 if applied else self.non_finite + 1
        if not applied:
            self.skipped.append(self.step)

    def lacks_refit(self, asked: RefitConfig) -> bool:
        """Whether the model of this step is without the refit that ``asked`` wants at the end."""
        done = self.refitted
        if not (asked.linear or asked.prototypes):
            return False
        if done is None or done["step"] != self.step:
            return True
        return any(done.get(key, value) != value for key, value in asked.model_dump().items())

    def rollback_limit(self) -> int:
        """The newest step whose checkpoint the present streak of non-finite steps cannot have spoiled.

        Where the run fell into it right after it had rolled back, that checkpoint itself is suspect.
        """
        began = self.step - self.non_finite
        if self.rollbacks and self.rollbacks[-1].to_step == began:
            return began - 1
        return began

    def roll_back(self, to: TrainState) -> None:
        """Become ``to``, the state of a checkpoint, and step over all data between it and now."""
        done = Rollback(self.step, to.step, to.samples_seen, self.samples_seen)
        history, skipped = [*self.rollbacks, done], self.skipped
        stepped_over = to.stepped_over + done.stop_position - done.first_position
        for each in fields(self):
            setattr(self, each.name, getattr(to, each.name))
        self.rollbacks, self.skipped, self.non_finite = history, skipped, 0
        self.stepped_over, self.samples_seen = stepped_over, done.stop_position

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"bad_samples": {name: sorted(bad) for name, bad in self.bad_samples.items()}}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> TrainState:
        """Read ``to_json`` back; entries of other origin are left out.

        Earlier versions did not note which samples were bad: those are counted when they are met again. Nor
        did they note a refit: it counts as made at this step.
        """
        names = {each.name for each in fields(cls)}
        state = cls(**{name: value for name, value in tree.items() if name in names})
        if "refitted" not in tree:
            state.refitted = {"step": state.step}
        state.bad_samples = {name: set(bad) for name, bad in tree.get("bad_samples", {}).items()}
        state.rollbacks = [Rollback(**each) for each in tree.get("rollbacks", ())]
        return state


def bad_counts(
    table: Sequence[Sequence[float]], domains: Sequence[str], reasons: Sequence[str]
) -> dict[tuple[str, str], int]:
    """Counts of bad samples by (domain, reason) that are not 0, from sums with a row for each domain."""
    return {
        (domain, reason): round(count)
        for domain, row in zip(domains, table, strict=True)
        for reason, count in zip(reasons, row, strict=True)
        if count
    }
