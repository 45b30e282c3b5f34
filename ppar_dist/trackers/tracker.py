"""What a tracker is: it takes points, in the order of their steps, and may take some of them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ppar_dist.config.identity import determining, flatten
from ppar_dist.config.schema import Config


class Point(NamedTuple):
    """The figures of one record of a step."""

    step: int
    values: Mapping[str, float]


class TakesBack(Enum):
    """Which points a tracker can take back, when a resumed run does their steps again."""

    ALL = "all"  # a file that is made again
    LATER = "later"  # those from a step on
    NONE = "none"  # a service keeps what it was sent


@dataclass
class Sent:
    """What a tracker was sent; kept in the run, so that the next start goes on there."""

    train: int = -1  # last step of the training log
    held_out: int = -1  # last step that was evaluated
    own: dict[str, Any] = field(default_factory=dict)  # of the tracker, as the name of its run there


@dataclass(frozen=True)
class About:
    """The run that is tracked."""

    run: Path
    name: str
    project: str
    steps: int
    settings: Mapping[str, Any]  # the keys that determine its result, with dots

    @classmethod
    def of(cls, config: Config) -> About:
        """The run of a configuration."""
        name, settings = config.run.name or config.run.dir.resolve().name, flatten(determining(config))
        return cls(config.run.dir, name, config.monitoring.project, config.train.steps, settings)


class Tracker(Protocol):
    """One place that figures go to. Any method may raise any exception: it is opened again later."""

    takes_back: TakesBack

    def open(self, own: dict[str, Any], first: int) -> None:
        """Begin, or go on; points from step ``first`` on will come, also those that came before.

        ``own`` is what the tracker keeps in the run; it is stored when this returns.
        """

    def write(self, points: Sequence[Point]) -> None:
        """Take points; when this returns, a kill of the process does not lose them."""

    def finish(self, scores: Mapping[str, float]) -> None:
        """Take the scores of the finished run."""

    def close(self) -> None:
        """Let go of files and connections."""
