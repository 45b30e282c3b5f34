"""The proof from a ledger that every position was consumed once, in order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ppar_dist.checkpoint import checkpoint_name, is_complete, list_candidates, read_state
from ppar_dist.errors import UserError
from ppar_dist.files.jsonl import read
from ppar_dist.run import paths
from ppar_dist.run.ledger import attempt_folders
from ppar_dist.run.state import TrainState

_Record = tuple[list[int], list[str]]  # positions, samples


@dataclass
class Audit:
    """What a ledger proves. ``problems`` is empty when every position was consumed once and in order."""

    attempts: int = 0
    world_sizes: list[int] = field(default_factory=list)  # of the attempts, in their order
    steps: int = 0
    positions: int = 0
    stepped_over: int = 0  # positions left out by rollbacks
    repeated_steps: int = 0  # done again after a kill; the first time left no trace in the result
    changed_repeats: int = 0  # of these, steps that saw other samples the second time
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def describe(self) -> str:
        """A paragraph for a terminal."""
        ranks = ", ".join(map(str, self.world_sizes))
        text = (
            f"{self.attempts} attempts on {ranks} ranks: {self.steps} steps, {self.positions} positions; "
            f"{self.repeated_steps} steps were done again, {self.changed_repeats} of them on other samples; "
            f"{self.stepped_over} positions were stepped over"
        )
        if not self.problems:
            return f"{text}\nevery position was consumed exactly once, in order"
        return "\n".join([text, *self.problems])


@dataclass(frozen=True)
class _Attempt:
    number: int
    world_size: int
    step: int
    position: int
    stepped_over: int
    ranks: dict[int, dict[int, _Record]]  # rank: step: record

    def steps(self) -> list[int]:
        """Steps that any rank noted."""
        return sorted({step for records in self.ranks.values() for step in records})

    def whole(self, step: int) -> _Record | None:
        """A step over all ranks; None where a rank has no record of it."""
        parts = [self.ranks.get(rank, {}).get(step) for rank in range(self.world_size)]
        noted = [part for part in parts if part is not None]
        if len(noted) < len(parts):
            return None
        return [p for positions, _ in noted for p in positions], [s for _, samples in noted for s in samples]

    def last(self) -> int:
        """The last step that all ranks noted."""
        return max((step for step in self.steps() if self.whole(step)), default=self.step)


def audit(run: Path) -> Audit:
    """Read the ledger of a run and check it: every position once, in order.

    It must reach up to the newest checkpoint: what that one learned from is what is to be proved.

    Raises:
        UserError: the run has no ledger, or one that cannot be read.
    """
    saved = _newest(run)  # before the ledger, to which a job may be adding
    read = [_read(number, folder) for number, folder in attempt_folders(run)]
    attempts = [attempt for attempt in read if attempt is not None]
    if not attempts:
        raise UserError(f"{run} has no ledger; train it with train.ledger=true")
    found = Audit(len(attempts), [attempt.world_size for attempt in attempts])
    _compare_repeats(attempts, found)
    before = _Attempt(0, 0, 0, 0, 0, {})  # where the history has got to
    for number, attempt in enumerate(attempts):
        later = [other.step for other in attempts[number + 1 :]]
        end = min(later) if later else attempt.last()
        if end > attempt.step or not later:
            before = _follow(before, attempt, end, found)
    if saved is not None:
        _compare_checkpoint(saved, before, found)
    return found


def _follow(before: _Attempt, attempt: _Attempt, end: int, found: Audit) -> _Attempt:
    """Check an attempt's steps up to ``end``, its part of the history; returns where that ends."""
    where = f"attempt {attempt.number}"
    if attempt.step != before.step:
        found.problems.append(f"{where} begins at step {attempt.step}, the one before ended at {before.step}")
    over = attempt.stepped_over - before.stepped_over
    found.stepped_over += over
    if attempt.position != before.position + over:
        expected = before.position + over
        found.problems.append(f"{where} begins at position {attempt.position}, expected {expected}")
    position = attempt.position
    for step in range(attempt.step + 1, end + 1):
        record = attempt.whole(step)
        if record is None:
            found.problems.append(f"{where}: step {step} was not noted by all {attempt.world_size} ranks")
            continue
        positions = record[0]
        if positions != list(range(position, position + len(positions))):
            found.problems.append(f"{where}, step {step}: positions {positions}, expected {position} on")
        position = max(positions, default=position - 1) + 1
        found.steps += 1
        found.positions += len(positions)
    return replace(attempt, step=end, position=position)


def _newest(run: Path) -> TrainState | None:
    """The state of the newest checkpoint that is there in full size and can be read."""
    for folder in reversed(list_candidates(run)):
        if is_complete(folder):
            # Damaged, or deleted by a job at this moment: a resume would pass it over, too.
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
                return TrainState.from_json(read_state(folder))
    return None


def _compare_checkpoint(saved: TrainState, end: _Attempt, found: Audit) -> None:
    """The history must hold all that the newest checkpoint was trained on."""
    name = checkpoint_name(saved.step)
    if saved.step > end.step:
        found.problems.append(
            f"steps {end.step + 1} to {saved.step} of {name} are not in the ledger, so they are not proved"
        )
    elif saved.step == end.step and saved.samples_seen != end.position:
        found.problems.append(
            f"{name} stands at position {saved.samples_seen}, the ledger ends at {end.position}"
        )


def _compare_repeats(attempts: Sequence[_Attempt], found: Audit) -> None:
    """Count steps that more than one attempt did, and those that saw other samples then."""
    seen: dict[int, _Record] = {}
    for attempt in attempts:
        for step in attempt.steps():
            record = attempt.whole(step)
            if record is None:
                continue
            if step in seen:
                found.repeated_steps += 1
                found.changed_repeats += record != seen[step]
            seen[step] = record


def _read(number: int, folder: Path) -> _Attempt | None:
    starts: list[dict[str, Any]] = []
    ranks: dict[int, dict[int, _Record]] = {}
    for path in sorted(folder.glob(paths.RANK_FILES)):
        records = list(_records(path))
        if not records:
            continue  # its first line was not written
        starts.append(records[0])
        notes = {note["step"]: (note["positions"], note["samples"]) for note in records[1:]}
        ranks[int(records[0]["rank"])] = notes
    if not starts:
        return None  # killed before it did anything
    first = starts[0]
    return _Attempt(
        number, first["world_size"], first["step"], first["position"], first["stepped_over"], ranks
    )


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file; the last line may be cut off, where its process was killed."""
    for line in read(path):
        if line.is_cut:
            return
        if line.record is None:
            raise UserError(
                f"the ledger {path} is damaged (line {line.number} is not a JSON object); nothing can be "
                "proved from it"
            )
        yield line.record
