"""Samples in common: of a target with a source (a leak), or of two sources."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import SampleError
from ppar_dist.doctor.case import ConfigCase, Domain
from ppar_dist.doctor.findings import Check, Finding, counted, failure, ok, warning

_COMPARED = 1000  # samples of a pair of domains whose bytes are compared at most
_MOST = 1 << 22  # samples of two domains that are compared; of more a share is
_CHUNK = 1 << 16  # samples looked at together


def overlap(case: ConfigCase) -> Finding | None:
    """No target shares samples with a source; sources do not share samples among themselves."""
    opened = [domain for domain in case.domains if domain.index is not None]
    pairs = [pair for pair in combinations(opened, 2) if "source" in (pair[0].role, pair[1].role)]
    if not pairs:
        return None
    leaks: list[str] = []
    repeats: list[str] = []
    facts: dict[str, int] = {}
    for one, other in pairs:
        shared, example = _shared(one, other)
        if not shared:
            continue
        facts[f"{one.title} / {other.title}"] = shared
        least = "at least " if shared >= _COMPARED else ""
        text = (
            f"{one.title} and {other.title} share {least}{counted(shared, 'sample')}, for example {example}"
        )
        (leaks if "target" in (one.role, other.role) else repeats).append(text)
    if leaks:
        remedy = "take them out of one of the two: scores on samples that were trained on are worthless"
        return failure("\n".join(leaks + repeats), remedy, shared=facts)
    if repeats:
        remedy = "prepare one of them without these, or drop it: they count twice, and held-out data may leak"
        return warning("\n".join(repeats), remedy, shared=facts)
    every = max(_every(one.index, other.index) for one, other in pairs if one.index and other.index)
    of_them = f" (1 in {every} samples compared, chosen by their content)" if every > 1 else ""
    return ok(f"no sample occurs in two of the {counted(len(opened), 'domain')}{of_them}", shared={})


def _shared(one: Domain, other: Domain) -> tuple[int, str]:
    """How many samples two domains have in common, and one of them."""
    left, right = one.index, other.index
    assert left is not None, "only domains that opened are compared"
    assert right is not None, "only domains that opened are compared"
    if left.fingerprint == right.fingerprint or _same_folder(one, other):
        return len(left), f"{left.key(0)} (the two are the same data)"
    matches, example = 0, ""
    rows, columns = _candidates(left, right)
    for i, j in zip(rows[:_COMPARED].tolist(), columns[:_COMPARED].tolist(), strict=True):
        if _same_bytes(left, i, right, j):
            matches += 1
            example = example or left.key(i)
    return matches, example


def _candidates(left: DomainIndex, right: DomainIndex) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Pairs of samples whose members have the same sizes in bytes and the same pixels per class."""
    every = _every(left, right)
    (marks, rows), (others, columns) = _marks(left, every), _marks(right, every)
    _, i, j = np.intersect1d(marks, others, return_indices=True)
    return rows[i], columns[j]


def _every(left: DomainIndex, right: DomainIndex) -> int:
    """Of how many samples one is compared: of both domains the same, as their content chooses them."""
    return -(-(len(left) + len(right)) // _MOST)


def _marks(index: DomainIndex, every: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """One number for each of some samples from all that the index says about its content, and the samples'
    numbers: equal for equal samples."""
    factors = np.random.default_rng(0).integers(1, 2**63, 2 + len(index.classes), np.uint64)
    parts, numbers = [], []
    for start in range(0, len(index), _CHUNK):
        stop = start + _CHUNK
        marks = np.asarray(index.counts[start:stop], np.uint64) @ factors[2:]  # modulo 2^64
        for factor, name in zip(factors, ("image_size", "label_size"), strict=False):
            marks += np.asarray(index.records[name][start:stop], np.uint64) * factor
        chosen = np.flatnonzero((marks >> np.uint64(20)) % np.uint64(every) == 0)
        parts.append(marks[chosen])
        numbers.append(chosen + start)
    return np.concatenate(parts), np.concatenate(numbers)


def _same_bytes(left: DomainIndex, i: int, right: DomainIndex, j: int) -> bool:
    try:
        return left.read(i).image == right.read(j).image
    except SampleError:
        return False  # the check of the shards reports one that cannot be read


CHECKS = (Check("overlap", overlap),)


def _same_folder(one: Domain, other: Domain) -> bool:
    if one.local is None or other.local is None:
        return one.path == other.path
    return one.local.resolve() == other.local.resolve()
