"""Who holds a run's folder, by the text of ``run.lock``, and whether that job lives."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from ppar_dist.processes import proc
from ppar_dist.processes.proc import Process
from ppar_dist.run.paths import LOCK


@dataclass(frozen=True)
class Holder:
    """What a lock says about the job that holds it."""

    id: str
    host: str
    pid: int
    born: int  # ticks since that machine's start
    machine: str
    job: str  # of a scheduler, if there is one
    since: str  # local time
    beat: int

    def to_text(self) -> str:
        """As a file holds it; the same length at every beat."""
        return json.dumps(asdict(self) | {"beat": f"{self.beat:012d}"}) + "\n"

    @staticmethod
    def from_text(text: str) -> Holder | None:
        """None where ``text`` is not a lock, or is being written."""
        try:
            facts = json.loads(text)
            return Holder(**facts | {"beat": int(facts["beat"])})
        except (ValueError, TypeError, KeyError):
            return None

    def describe(self) -> str:
        """Who it is, in words."""
        job = f"{self.job}, " if self.job else ""
        return f"{job}process {self.pid} on {self.host}, since {self.since}"


def read_holder(folder: Path) -> Holder | None:
    """Who holds the run in ``folder``, dead or alive; None if no job does."""
    text = read_text(folder / LOCK)
    return None if text is None else Holder.from_text(text)


@dataclass(frozen=True)
class State:
    """A lock as a bystander sees it; ``lives`` is None where it is another machine's."""

    text: str
    lives: bool | None
    age_s: float


def read_state(folder: Path) -> State | None:
    """What is known at once about the job that holds ``folder``; None if there is no lock."""
    try:
        age_s = max(0.0, time.time() - (folder / LOCK).stat().st_mtime)
    except OSError:
        return None
    holder = read_holder(folder)
    if holder is None:
        return State("another job", None, age_s)
    found = look(holder)
    lives = None if found is Process.UNKNOWN else found is not Process.GONE
    return State(holder.describe(), lives, age_s)


class Verdict(Enum):
    """What may be done about another job's lock."""

    DEAD = "dead"  # take it over
    ALIVE = "alive"  # give up
    UNCLEAR = "unclear"  # look again


def judge(process: Process, waited_s: float, unchanged_s: float, silent_s: float) -> Verdict:
    """Whether the holder of a lock is dead. Pure.

    Args:
        process: what this machine's kernel says about it; UNKNOWN on another machine.
        waited_s: seconds since the first look at the lock.
        unchanged_s: seconds for which the lock has stayed the same; ``waited_s`` where it never changed.
        silent_s: the limit.
    """
    if process is Process.GONE:
        return Verdict.DEAD
    if waited_s <= silent_s:
        return Verdict.UNCLEAR
    beats = unchanged_s < min(waited_s, silent_s / 2)  # half the limit: three beats, at least
    if beats or process is not Process.UNKNOWN:
        return Verdict.ALIVE
    return Verdict.DEAD if unchanged_s > silent_s else Verdict.UNCLEAR


class Watched:
    """Another job's lock, or its right to take one over, and for how long it has stayed the same.

    The holder may change meanwhile: another job that waits, too, may get the folder first.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self.holder = Holder.from_text(text)
        self._began = self._changed = time.monotonic()
        self.is_logged = False

    def look(self) -> bool:
        """Read it again; False where it is not there any more."""
        newer = read_text(self.path)
        if newer is not None and newer != self.text:
            self.text, self._changed = newer, time.monotonic()
            self.holder = Holder.from_text(newer) or self.holder
        return newer is not None

    def verdict(self, silent_s: float) -> Verdict:
        """Whether its holder is dead."""
        now = time.monotonic()
        return judge(look(self.holder), now - self._began, now - self._changed, silent_s)


def look(holder: Holder | None) -> Process:
    """What this machine knows of a holder's process."""
    if holder is None or not holder.machine or holder.machine != proc.machine():
        return Process.UNKNOWN
    return proc.look(holder.pid, holder.born)


def describe(holder: Holder | None) -> str:
    """Who it is, in words, also where the lock cannot be read."""
    return "another job" if holder is None else holder.describe()


def read_text(path: Path) -> str | None:
    """A lock's text, None where there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
