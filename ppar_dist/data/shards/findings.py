"""What is found in the shards of a domain besides its good samples."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ppar_dist.data.shards.check import Fault
from ppar_dist.errors import DataError
from ppar_dist.text import some

QUARANTINE = "quarantine.jsonl"
_PICKLES = ("pkl", "pickle", "pyd", "pth", "pt")
_NAMED = 5  # shards that a message names


class BadSamples(DataError):
    """More bad samples than allowed: ``findings`` has them by reason."""

    def __init__(self, findings: Findings, remedy: str) -> None:
        super().__init__(f"{findings.summary()}. {remedy}")
        self.findings = findings


@dataclass
class Findings:
    """What was found in the shards of a domain besides its good samples."""

    domain: str
    good: int = 0
    bad: Counter[str] = field(default_factory=Counter)  # by reason; a shard that breaks off counts as one
    examples: dict[str, str] = field(default_factory=dict)  # the first message of each reason
    broken: list[str] = field(default_factory=list)  # shards that cannot be read to their end, and why
    ignored: Counter[str] = field(default_factory=Counter)  # other members, by extension
    empty: list[str] = field(default_factory=list)  # shards without a good sample
    unpacked: list[str] = field(default_factory=list)  # compressed shards, and what became of each
    passed_over: list[str] = field(default_factory=list)  # archives that are not among the shards
    turned: int = 0  # images that are turned upright by their EXIF orientation

    def add(self, shard: str, fault: Fault) -> None:
        """Count a fault."""
        self.bad[fault.error.reason] += 1
        self.examples.setdefault(fault.error.reason, str(fault.error))
        if fault.key is None:
            self.broken.append(f"{shard}: {fault.error.detail}")

    def exceed(self, max_bad_ratio: float) -> bool:
        """Whether more is bad than that share of all samples."""
        return self.bad.total() > max_bad_ratio * (self.bad.total() + self.good)

    def summary(self) -> str:
        """Every reason with its count and first example, in one line."""
        reasons = "; ".join(f"{n} {reason} ({self.examples[reason]})" for reason, n in self.bad.most_common())
        total = self.bad.total() + self.good
        return f"{self.bad.total()} of {total} samples of domain {self.domain} are bad: {reasons}"

    def left_out(self) -> str:
        """The end of a last line: how many samples were left out and why; "" where none was."""
        counts = ", ".join(f"{reason} {count}" for reason, count in self.bad.most_common())
        return f"; left out {self.bad.total()}: {counts}" if self.bad else ""

    def lines(self) -> list[str]:
        """What a user should know, most important first; none where all is well."""
        lines = [
            f"unpacked {each}: in a compressed tar no sample can be read by itself" for each in self.unpacked
        ]
        lines += [f"broken shard {each}; whatever came after that is lost" for each in self.broken]
        if self.turned:
            lines.append(
                f"{self.turned} images are turned upright by their EXIF orientation whenever they are read"
            )
        if self.bad:
            counts = ", ".join(f"{reason} {count}" for reason, count in self.bad.most_common())
            lines.append(f"left out {self.bad.total()} bad samples ({counts}), listed in {QUARANTINE}")
        if self.passed_over:
            lines.append(
                f"passed over {len(self.passed_over)} archives, which are in subfolders or of an ending that "
                f"is not read: {some(self.passed_over)}"
            )
        if self.empty:
            more = f" and {len(self.empty) - _NAMED} more" if len(self.empty) > _NAMED else ""
            lines.append(f"no good sample in {', '.join(self.empty[:_NAMED])}{more}")
        if self.ignored:
            counts = ", ".join(f".{kind} {count}" for kind, count in self.ignored.most_common())
            counts = counts.replace(".clutter", "clutter")
            pickles = any(kind.split(".")[-1] in _PICKLES for kind in self.ignored)
            lines.append(f"ignored members of other kinds: {counts}" + "; pickles are never read" * pickles)
        return lines
