"""Bad samples: what is known of one, the log they go to, and how many are too many."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ppar_dist.data.order import Order, SampleAddress
from ppar_dist.files.jsonl import JsonLines

FEW_SAMPLES = 100  # a domain counts as at least so many: its first bad sample is not a ratio yet

log = logging.getLogger(__name__)


class BadSample(NamedTuple):
    """A sample that could not be used when its turn came."""

    position: int
    domain: int  # number of the source domain
    sample: int  # number within the domain
    shard: str
    key: str
    reason: str  # one of REASONS
    detail: str


class QuarantineLog:
    """A file of bad samples, one JSON object a line; it is made when the first one comes.

    Args:
        path: the file; lines are appended, also after a run that was cut off within a line.
        domains: names of the source domains by number.
    """

    def __init__(self, path: Path | str, domains: Sequence[str]) -> None:
        self.path = Path(path)
        self._domains = tuple(domains)
        self._file = JsonLines(self.path)
        self._seen: defaultdict[tuple[str, str], set[int]] = defaultdict(set)

    def write(self, bad: BadSample) -> None:
        """Append a bad sample, also one that was met before.

        The first of each domain and reason is logged as a warning, then the 10th, 100th, … other one.
        One that cannot be written (storage full) is a warning too: the run goes on.
        """
        domain = self._domains[bad.domain]
        seen = self._seen[domain, bad.reason]
        is_new = bad.sample not in seen
        seen.add(bad.sample)
        if is_new and _is_power_of_ten(len(seen)):
            self._warn(domain, bad)
        record = bad._asdict() | {"domain": domain}
        if not self._file.write(record):
            log.warning("lost from %s: %s", self.path, json.dumps(record))

    def close(self) -> None:
        """Close the file; a later ``write`` opens it again."""
        self._file.close()

    def _warn(self, domain: str, bad: BadSample) -> None:
        count = len(self._seen[domain, bad.reason])
        log.warning(
            "bad sample no. %d of domain %s, reason %s: %s sample %s: %s; replaced (all are listed in %s)",
            *(count, domain, bad.reason, bad.shard, bad.key, bad.detail, self.path),
        )


def bad_samples(order: Order, first: int, attempts: Sequence[int]) -> list[SampleAddress]:
    """The samples that a global batch found bad, from how many were tried in vain at each of its positions.

    Every rank knows those of all, without being told: what is tried at a position is a function of it.

    Args:
        order: of the run.
        first: position of the batch.
        attempts: by place in the batch, bad samples that the one trained on stands for.
    """
    tried = [(first + place, number) for place, vain in enumerate(attempts) for number in range(vain)]
    return [order.locate(position, number) for position, number in tried]


def excess(
    bad: Sequence[float], samples: Sequence[float], names: Sequence[str], max_bad_ratio: float
) -> str | None:
    """Why the job must end: a domain's bad samples exceed ``max_bad_ratio`` of its samples so far.

    A domain with fewer than ``FEW_SAMPLES`` counts as having that many; with a ratio of 0 the first bad
    sample is one too many.

    Args:
        bad: bad samples met per domain, over all ranks and from the run's beginning, each once.
        samples: samples met per domain, likewise.
        names: of the domains.
        max_bad_ratio: ``data.max_bad_ratio``.

    Returns:
        The message, or None while all is well.
    """
    problems = []
    for name, found, seen in zip(names, bad, samples, strict=True):
        allowed = max_bad_ratio * max(seen, FEW_SAMPLES)
        if found > allowed:
            problems.append(
                f"domain {name}: {found:.0f} bad samples in {seen:.0f}, at most {allowed:.0f} are allowed"
            )
    if not problems:
        return None
    return (
        f"too much bad data (data.max_bad_ratio={max_bad_ratio:g} of a domain's samples, counted as at least "
        f"{FEW_SAMPLES}): {'; '.join(problems)}. The quarantine log lists them; repair the shards and index "
        "them again, or raise data.max_bad_ratio"
    )


def _is_power_of_ten(number: int) -> bool:
    return str(number).rstrip("0") == "1"
