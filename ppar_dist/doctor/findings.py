"""Checks, their findings, and how these are printed.

A check is one small function of a case (a configuration, or a run's folder). It returns a finding, or None
where it does not apply. One that crashes is itself a failure; the others still run.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

from ppar_dist.text import one_line

C = TypeVar("C")


class Status(StrEnum):
    """Severity of a finding, in rising order."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """What a check found: text of one or more lines, what to do about it, and the figures as JSON values."""

    status: Status
    found: str
    remedy: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def ok(found: str, **facts: Any) -> Finding:
    """Nothing to do."""
    return Finding(Status.OK, found, None, facts)


def warning(found: str, remedy: str, **facts: Any) -> Finding:
    """The job would run, but perhaps not as intended."""
    return Finding(Status.WARNING, found, remedy, facts)


def failure(found: str, remedy: str, **facts: Any) -> Finding:
    """The job would fail, or its result would be worthless."""
    return Finding(Status.FAILURE, found, remedy, facts)


@dataclass(frozen=True)
class Check(Generic[C]):
    """A named check of cases of type C; ``run`` returns None where it does not apply."""

    name: str
    run: Callable[[C], Finding | None]


@dataclass(frozen=True)
class Result:
    """A finding with the name of its check and of the group it is shown in."""

    group: str
    name: str
    finding: Finding


@dataclass(frozen=True)
class Diagnosis:
    """All findings about one subject."""

    subject: str
    results: tuple[Result, ...]

    @property
    def status(self) -> Status:
        """The worst of all findings."""
        found = {result.finding.status for result in self.results}
        return next((status for status in reversed(Status) if status in found), Status.OK)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "subject": self.subject,
            "status": self.status.value,
            "checks": [
                {
                    "name": result.name,
                    "status": result.finding.status.value,
                    "found": result.finding.found,
                    "remedy": result.finding.remedy,
                    "facts": result.finding.facts,
                }
                for result in self.results
            ],
        }

    def lines(self, width: int = 110) -> list[str]:
        """For a terminal of ``width`` columns: a block per group, a summary last."""
        indent = max((len(result.name) for result in self.results), default=0) + 13
        lines = [self.subject]
        group = None
        for result in self.results:
            if result.group != group:
                group = result.group
                lines += ["", group]
            lines += _entry(result, indent, max(width, indent + 40))
        return [*lines, "", self.summary()]

    def summary(self) -> str:
        """One line: how many findings of each status, and what to do."""
        count = {status: sum(result.finding.status == status for result in self.results) for status in Status}
        parts = [
            f"{number} {status}{'s' if number != 1 and status != Status.OK else ''}"
            for status, number in reversed(count.items())
            if number
        ]
        verdict = {
            Status.OK: "no problems found",
            Status.WARNING: "it can go ahead; read the warnings",
            Status.FAILURE: "fix the failures first",
        }
        return f"{', '.join(parts) or 'no checks'}: {verdict[self.status]}"


def run_checks(subject: str, groups: Iterable[tuple[str, Sequence[Check[C]]]], case: C) -> Diagnosis:
    """Run the checks of every (heading, checks) group on ``case``, also after one has failed."""
    results = []
    for group, checks in groups:
        for check in checks:
            finding = _attempt(check, case)
            if finding is not None:
                results.append(Result(group, check.name, finding))
    return Diagnosis(subject, tuple(results))


def counted(number: int, noun: str) -> str:
    """``1 step``, ``1,234 steps``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(number: float) -> str:
    """Bytes in a unit that suits their size: ``512 B``, ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if number >= 100 or unit == "B" else f"{number:.1f} {unit}"


def listing(items: Iterable[object], most: int = 5) -> str:
    """The first items, and how many more there are."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def _attempt(check: Check[C], case: C) -> Finding | None:
    try:
        return check.run(case)
    except Exception as error:  # any: one failing check must not hide the others
        return failure(
            f"this check itself failed ({type(error).__name__}: {one_line(error)})",
            "this is a bug in the check; the other checks ran",
        )


def _entry(result: Result, indent: int, width: int) -> list[str]:
    finding = result.finding
    mark = finding.status.value if finding.status == Status.OK else finding.status.value.upper()
    head = f"  {mark:<8}  {result.name}"
    body = [part for line in finding.found.splitlines() for part in _wrapped(line, width - indent)]
    if finding.remedy:
        remedy = _wrapped(finding.remedy, width - indent - 3)
        body += ["-> " + remedy[0], *("   " + line for line in remedy[1:])]
    return [
        (head if number == 0 else "").ljust(indent) + line if line else head
        for number, line in enumerate(body or [""])
    ]


def _wrapped(line: str, width: int) -> list[str]:
    """Lines of at most ``width``; the line of a table keeps its blanks where it fits."""
    if len(line) <= width:
        return [line]
    return textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]
