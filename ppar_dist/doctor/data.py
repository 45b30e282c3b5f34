"""Domains: do they open, and are their shards those that were indexed?"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.doctor.case import ConfigCase, Domain
from ppar_dist.doctor.describe import sizes_of
from ppar_dist.doctor.findings import Check, Finding, counted, failure, ok, size, warning
from ppar_dist.files.durable import fingerprint
from ppar_dist.run.facts import read_log

_THREADS = 4  # hashing releases the interpreter lock; more threads would only compete for the storage
_READ = 32 << 30  # bytes of shards that are hashed unless all are asked for: a minute or two
_SEED = 0
_LISTED = 10  # problems of a domain; the rest are counted
_INDEX_AGAIN = "fetch the shard again, or run `ppar-dist index` if it was changed on purpose"


def domains(case: ConfigCase) -> Finding:
    """Every source and target opens and has the run's classes."""
    broken = [domain for domain in case.domains if domain.index is None]
    facts = {domain.title: _figures(domain) for domain in case.domains}
    if broken:
        found = "\n".join(f"{domain.title}: {domain.problem}" for domain in broken)
        remedy = "correct data.root, data.sources or targets, or prepare the domain again"
        return failure(found, remedy, domains=facts)
    lines = [
        f"{domain.title}: {counted(len(index), 'sample')} in {counted(len(index.shards), 'shard')}, "
        f"{size(_bytes(domain))}, {_sizes(index)}"
        for domain in case.domains
        if (index := domain.index) is not None
    ]
    return ok("\n".join(lines), domains=facts)


def shards(case: ConfigCase) -> Finding | None:
    """Every shard is the one that was indexed: by its sha256, or with ``quick`` by its size."""
    here = [(domain.local, domain.shards) for domain in case.domains]
    listed = {(folder / item["name"]): item for folder, items in here if folder for item in items}
    if not listed:
        return None
    problems: list[str] = []
    hashed = set() if case.quick else _hashed(listed, case.read_all)
    with ThreadPoolExecutor(_THREADS) as pool:
        work = pool.map(lambda path: _shard_problem(path, listed[path], path not in hashed), listed)
        for number, problem in enumerate(work, start=1):
            case.progress("shards", number, len(listed))
            if problem:
                problems.append(problem)
    total = size(sum(item["bytes"] for item in listed.values()))
    read = sum(listed[path]["bytes"] for path in hashed)
    facts = {"shards": len(listed), "wrong": problems, "hashed": not case.quick, "hashed_shards": len(hashed)}
    if problems:
        count = f"{len(problems)} of {counted(len(listed), 'shard')} cannot be used"
        return failure(f"{count}:\n" + "\n".join(_first(problems)), _INDEX_AGAIN, **facts)
    if case.quick:
        return ok(
            f"{counted(len(listed), 'shard')}, {total}, have their indexed sizes; contents were not hashed",
            **facts,
        )
    if len(hashed) < len(listed):
        share = sum(listed[path]["samples"] for path in hashed), sum(i["samples"] for i in listed.values())
        return ok(
            f"{counted(len(listed), 'shard')}, {total}, have their indexed sizes. Contents of "
            f"{len(hashed):,} of them were hashed and are those indexed: {size(read)}, {share[0]:,} of "
            f"{share[1]:,} samples, drawn with seed {_SEED}; --all reads all",
            **facts,
        )
    return ok(f"{counted(len(listed), 'shard')}, {total}: each sha256 is the indexed one", **facts)


def _hashed(listed: Mapping[Path, dict[str, Any]], read_all: bool) -> set[Path]:
    """The shards whose contents are read: all, or as many as ``_READ`` bytes, drawn at random."""
    paths = list(listed)
    if read_all or sum(item["bytes"] for item in listed.values()) <= _READ:
        return set(paths)
    random.Random(_SEED).shuffle(paths)
    chosen, total = set[Path](), 0
    for path in paths:
        total += listed[path]["bytes"]
        if total > _READ and chosen:
            break
        chosen.add(path)
    return chosen


def set_aside(case: ConfigCase) -> Finding | None:
    """Samples that indexing left out, by reason."""
    lines, facts = [], {}
    for domain in case.domains:
        reasons: Counter[str] = Counter()
        log = read_log(domain.local / "quarantine.jsonl", reasons, "reason") if domain.local else None
        if log is not None and reasons:
            facts[domain.title] = dict(reasons)
            kinds = ", ".join(f"{reason} {number}" for reason, number in reasons.most_common())
            lines.append(f"{domain.title}: {counted(reasons.total(), 'sample')} left out ({kinds})")
    if not lines:
        return None
    return warning(
        "\n".join(lines),
        "see quarantine.jsonl in the domain's folder; repair what should be trained on",
        **facts,
    )


def _figures(domain: Domain) -> dict[str, Any]:
    if domain.index is None:
        return {"problem": domain.problem}
    return {
        "samples": len(domain.index),
        "shards": len(domain.index.shards),
        "bytes": _bytes(domain),
        "fingerprint": domain.index.fingerprint,
    }


def _bytes(domain: Domain) -> int:
    return sum(item["bytes"] for item in domain.shards)


def _sizes(index: DomainIndex) -> str:
    sizes, seen = sizes_of(index)
    (width, height), _ = sizes.most_common(1)[0]
    others = f" and {len(sizes) - 1} other sizes" if len(sizes) > 1 else ""
    sampled = f" among {seen:,} samples of the index" if seen < len(index) else ""
    return f"{width}x{height}{others}{sampled}"


def _shard_problem(path: Path, expected: dict[str, Any], quick: bool) -> str | None:
    try:
        found = path.stat().st_size
        if found != expected["bytes"]:
            return f"{path} has {found:,} bytes, {expected['bytes']:,} were indexed"
        if quick:
            return None
        digest = fingerprint(path)[1]
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return None if digest == expected["sha256"] else f"{path} differs from what was indexed (sha256)"


def _first(problems: list[str]) -> Iterator[str]:
    yield from problems[:_LISTED]
    if len(problems) > _LISTED:
        yield f"and {len(problems) - _LISTED} more"


CHECKS = (
    Check("domains", domains),
    Check("shards", shards),
    Check("left out", set_aside),
)
