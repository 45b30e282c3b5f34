"""Who is to blame, judged from what ranks have said, and when. Pure functions: no clock, no store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ppar_dist.exit_codes import RESUME
from ppar_dist.processes.proc import Process
from ppar_dist.text import in_seconds
from ppar_dist.watchdog.heartbeat import (
    FAILED,
    LEFT,
    OFF,
    RUNNING,
    TRIPPED,
    Heartbeat,
    names,
    places,
)

_GRACE_S = 5.0  # a rank may be about to fail by itself as another did, and then posts its own message
_QUIET_BEATS = 5  # beats a rank may miss before it is suspected, where something else is wrong already


@dataclass(frozen=True)
class Limits:
    """Seconds: of a phase, of silence, and between beats."""

    stall_s: float
    peer_s: float
    beat_s: float

    @property
    def quiet_s(self) -> float:
        """Silence after which a rank is suspected, where something else is wrong already."""
        return _QUIET_BEATS * self.beat_s


@dataclass(frozen=True)
class Seen:
    """Another rank as known here."""

    report: Heartbeat
    age_s: float  # of the report, by the clock of this rank
    silent_s: float  # for which the board was read without news of it
    process: Process = Process.UNKNOWN

    @property
    def seconds(self) -> float:
        """For how long it has been in its phase, if it is still there."""
        return self.report.seconds + self.age_s

    @property
    def is_running(self) -> bool:
        """Whether it has neither left nor failed, as far as it said."""
        return self.report.state == RUNNING


@dataclass(frozen=True)
class View:
    """All that one rank knows at one moment."""

    me: Heartbeat
    peers: Mapping[int, Seen]
    missing: tuple[int, ...]  # ranks that never posted
    board: str  # where the board is
    trouble: str  # what the last attempt to reach it said, if it failed
    hosts_board: bool
    contact_s: float  # since the board was last read
    watched_s: float  # since this rank began to watch

    def table(self) -> list[str]:
        """A line for each rank."""
        lines = {self.me.rank: self.me.line(self.me.seconds)}
        for rank, seen in self.peers.items():
            note = f", its process is {seen.process.value}" if _is_odd(seen) else ""
            note += f", silent for {in_seconds(seen.age_s)}" if seen.is_running and seen.silent_s > 3 else ""
            lines[rank] = seen.report.line(seen.seconds, note)
        lines |= {rank: f"rank {rank}: has not reported since the start" for rank in self.missing}
        return [lines[rank] for rank in sorted(lines)]


@dataclass(frozen=True)
class Verdict:
    """Who is to blame, and the exit code that follows."""

    text: str
    code: int = RESUME


def judge(view: View, limits: Limits) -> Verdict | None:
    """The verdict of a rank that has no error of its own; None while all is well."""
    return (
        _posted(view, _GRACE_S)
        or _died(view)
        or _unreachable(view, limits, limits.peer_s)
        or _silent(view, limits, limits.peer_s)
        or _hung(view, limits)
        or _missing(view, limits)
    )


def judge_failure(view: View, limits: Limits) -> Verdict | None:
    """The verdict of a rank whose collective has failed or takes too long: it suspects others readily."""
    return (
        _posted(view, 0.0)
        or _died(view)
        or _unreachable(view, limits, limits.quiet_s)
        or _silent(view, limits, limits.quiet_s)
        or _left(view)
    )


def no_culprit(view: View, error: BaseException) -> Verdict:
    """The verdict where a collective has failed and yet every rank still reports."""
    behind = _furthest_behind([view.me, *(seen.report for seen in view.peers.values())])
    reason = str(error).partition("\n")[0]
    return Verdict(
        f"a collective of {view.me.name} failed {view.me.place} although every rank still reports; "
        f"furthest behind: {names(behind)} {places(behind)}; {type(error).__name__}: {reason}"
    )


def _posted(view: View, grace_s: float) -> Verdict | None:
    """What another rank has found out, or says of itself."""
    for seen in view.peers.values():
        if seen.report.state == TRIPPED or (seen.report.state == FAILED and seen.age_s >= grace_s):
            return Verdict(seen.report.reason, seen.report.code)
    return None


def _died(view: View) -> Verdict | None:
    gone = [seen.report for seen in view.peers.values() if seen.is_running and seen.process is Process.GONE]
    if not gone:
        return None
    who = gone[0].full_name if len(gone) == 1 else names(gone)
    verb = "has died: its process is gone" if len(gone) == 1 else "have died: their processes are gone"
    return Verdict(f"{who} {verb}; last heard of {places(gone)}")


def _hung(view: View, limits: Limits) -> Verdict | None:
    """A phase of this rank takes too long: by its own fault, or by that of the rank it waits for."""
    me, beats_s = view.me, 2 * limits.beat_s
    # A rank that waits is patient for longer, so that the one at fault speaks first: it knows best.
    if me.phase == OFF or me.seconds <= limits.stall_s + (beats_s if me.waits else 0.0):
        return None
    if me.waits and (known := judge_failure(view, limits)):
        return known
    peers = [seen for seen in view.peers.values() if seen.is_running]
    at_work = [seen for seen in peers if not seen.report.waits]
    hung = [seen for seen in at_work if seen.report.phase != OFF and seen.seconds > limits.stall_s]
    if me.waits and not hung:
        # Another rank that works keeps this one waiting: its own limit counts, and that has not passed.
        return None if at_work else _all_wait(view, peers, limits)
    culprits = [(seen.report, seen.seconds) for seen in hung] + ([] if me.waits else [(me, me.seconds)])
    return Verdict(_hanging(culprits, len(peers) + 1, limits))


def _hanging(culprits: list[tuple[Heartbeat, float]], ranks: int, limits: Limits) -> str:
    limit = f"limit faults.stall_s={limits.stall_s:g}"
    culprits = sorted(culprits, key=lambda pair: pair[0].rank)
    waiting = ranks > len(culprits)
    if len(culprits) == 1:
        report, seconds = culprits[0]
        rest = "; the others wait for it" if waiting else ""
        return f"{report.name} hangs in {report.phase} ({in_seconds(seconds)}, {limit}){rest}"
    each = ", ".join(f"{r.name} hangs in {r.phase} ({in_seconds(seconds)})" for r, seconds in culprits)
    return f"{each}; {limit}{'; the others wait for them' if waiting else ''}"


def _all_wait(view: View, peers: list[Seen], limits: Limits) -> Verdict:
    """Every rank is inside a collective, which does not end."""
    reports = [view.me, *(seen.report for seen in peers)]
    behind = _furthest_behind(reports)
    limit = f"{in_seconds(view.me.seconds)}, limit faults.stall_s={limits.stall_s:g}"
    if len(behind) == len(reports):
        text = f"all ranks wait for each other {behind[0].place} ({limit}): a device or the network is stuck"
        return Verdict(text)
    verb = "hangs" if len(behind) == 1 else "hang"
    return Verdict(f"{names(behind)} {verb} {places(behind)} ({limit}); the others are further and wait")


def _furthest_behind(reports: list[Heartbeat]) -> list[Heartbeat]:
    """The ranks that have the longest way to go to where the others are."""
    first = min((report.step, report.before) for report in reports)
    return [report for report in reports if (report.step, report.before) == first]


def _unreachable(view: View, limits: Limits, limit_s: float) -> Verdict | None:
    if view.hosts_board or view.contact_s <= limit_s:
        return None
    host = view.peers.get(0)
    last = f"; rank 0 was last heard of {host.report.place}" if host else ""
    last += ", its process is stopped" if host and host.process is Process.STOPPED else ""
    last += f"; {view.trouble}" if view.trouble else ""
    return Verdict(
        f"{view.board} cannot be reached by {view.me.name} for {in_seconds(view.contact_s)} "
        f"(limit faults.peer_s={limits.peer_s:g}): it is dead or stopped, or {view.me.host} is cut off{last}"
    )


def _silent(view: View, limits: Limits, limit_s: float) -> Verdict | None:
    running = [seen for seen in view.peers.values() if seen.is_running]
    if not any(seen.silent_s > limit_s for seen in running):
        return None
    # Ranks of one lost host fall silent within a beat of each other: name them all.
    silent = [seen for seen in running if seen.silent_s > limit_s - 2 * limits.beat_s]
    return _silence(view, silent, limits)


def _silence(view: View, silent: list[Seen], limits: Limits) -> Verdict:
    reports = [seen.report for seen in silent]
    limit = f"for {in_seconds(max(seen.silent_s for seen in silent))} (limit faults.peer_s={limits.peer_s:g})"
    if view.hosts_board and len(silent) == len(view.peers) > 1:
        text = (
            f"{view.me.name} has heard of no other rank {limit}: {view.me.host} is cut off, or all have died"
        )
        return Verdict(f"{text}; they were last heard of {places(reports)}")
    if len(silent) > 1:
        text = f"{names(reports)} are silent {limit}: dead, stopped or cut off"
    elif silent[0].process is Process.STOPPED:
        text = f"{reports[0].full_name} is stopped, as by SIGSTOP, and silent {limit}"
    else:
        text = f"{reports[0].full_name} is silent {limit}: dead, stopped or cut off"
    return Verdict(f"{text}; last heard of {places(reports)}")


def _missing(view: View, limits: Limits) -> Verdict | None:
    if not view.missing or view.watched_s <= limits.stall_s:
        return None
    ranks = ", ".join(str(rank) for rank in view.missing)
    return Verdict(
        f"rank{'s' if len(view.missing) > 1 else ''} {ranks} said nothing since the start, "
        f"{in_seconds(view.watched_s)} ago (limit faults.stall_s={limits.stall_s:g})"
    )


def _left(view: View) -> Verdict | None:
    left = [seen.report for seen in view.peers.values() if seen.report.state == LEFT]
    if not left:
        return None
    return Verdict(f"{names(left)} left the job {places(left)}; the others were still at work")


def _is_odd(seen: Seen) -> bool:
    return seen.process in (Process.STOPPED, Process.GONE)
