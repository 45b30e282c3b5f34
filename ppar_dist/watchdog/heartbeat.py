"""What a rank says about itself, and how messages speak of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from ppar_dist.exit_codes import RESUME
from ppar_dist.text import in_seconds

OFF = "off"  # the phase in which a rank is not judged for hanging
WAITING = frozenset({"all-reduce", "backward", "step"})  # phases with other ranks' collectives inside
READING = ("start", "data", "evaluate", "refit")  # phases that may wait for object storage

RUNNING = "running"
LEFT = "left"  # it has ended as it should
FAILED = "failed"  # by an error of its own
TRIPPED = "tripped"  # its watchdog has found a culprit


@dataclass(frozen=True)
class Heartbeat:
    """One rank at one beat."""

    rank: int
    host: str
    address: str
    pid: int
    machine: str  # equal on ranks that see each other's processes; "" where unknown
    born: int  # when the process started, in the kernel's ticks: a pid may be given away again
    phase: str = OFF
    step: int = 0
    before: int = 0  # phases of this step before this one: all ranks go through the same
    seconds: float = 0.0  # in this phase, or since its last sign of progress
    collective: str = ""  # the collective of World it waits in
    waits: bool = False  # for other ranks: in a collective, or in a phase that has them inside
    beat: int = 0
    state: str = RUNNING
    reason: str = ""  # of a state other than RUNNING, as a sentence
    code: int = RESUME  # with which the other ranks end because of it
    heard: bool = False  # that rank 0, whose process may hold the board, is about to end

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Heartbeat:
        """What ``to_text`` wrote."""
        return cls(**json.loads(text))

    @property
    def name(self) -> str:
        """The rank and its host."""
        return f"rank {self.rank} on {self.host}"

    @property
    def full_name(self) -> str:
        """The rank, its host, and what finds its process there."""
        return f"{self.name} ({self.address}, pid {self.pid})"

    @property
    def place(self) -> str:
        """Where it is in its work."""
        phase = "outside the steps" if self.phase == OFF else f"in {self.phase}"
        return f"{phase} at step {self.step}"

    def line(self, seconds: float, note: str = "") -> str:
        """Its line in the table of all ranks, ``seconds`` being the age of its phase."""
        phase = "outside the steps" if self.phase == OFF else f"in {self.phase}"
        inside = f", waiting in a {self.collective}" if self.collective else ""
        ended = f", {self.state}" if self.state in (LEFT, FAILED) else ""
        return (
            f"rank {self.rank} (host {self.host}, pid {self.pid}): {phase} since {in_seconds(seconds)} "
            f"at step {self.step}{inside}{ended}{note}"
        )


def names(reports: Iterable[Heartbeat]) -> str:
    """Several ranks, by host: ``ranks 4, 5 on worker-1 and rank 6 on worker-2``."""
    by_host: dict[str, list[str]] = {}
    for report in sorted(reports, key=lambda r: r.rank):
        by_host.setdefault(report.host, []).append(str(report.rank))
    parts = [
        f"rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)} on {host}" for host, ranks in by_host.items()
    ]
    return " and ".join(parts)


def places(reports: Iterable[Heartbeat]) -> str:
    """Where ranks stood, each place once."""
    return ", ".join(dict.fromkeys(report.place for report in reports))
