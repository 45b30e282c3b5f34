"""Labels: which classes occur, how often, and how many pixels have no class; from the indexes alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.findings import Check, Finding, counted, ok, warning


def classes(case: ConfigCase) -> Finding | None:
    """Every class occurs in what is trained on; a table of pixel shares."""
    if not case.sources:
        return None
    names, titles = case.classes.classes, [domain.name for domain, _ in case.sources]
    pixels = np.stack([_class_pixels(index, case.train_size(index)) for _, index in case.sources])  # (M, K)
    shares = pixels / np.maximum(1, pixels.sum(1, keepdims=True))  # (M, K)
    facts: dict[str, Any] = {
        "pixel_ratio": {
            title: dict(zip(names, np.round(row, 5).tolist(), strict=True))
            for title, row in zip(titles, shares, strict=True)
        }
    }
    table = _table(titles, names, shares)
    never = [name for name, column in zip(names, pixels.T, strict=True) if not column.any()]
    lacking = {
        title: [name for name, share in zip(names, row, strict=True) if not share and name not in never]
        for title, row in zip(titles, shares, strict=True)
    }
    facts |= {"never": never, "lacking": {title: found for title, found in lacking.items() if found}}
    table += "".join(f"\nnot in {title}: {', '.join(found)}" for title, found in lacking.items() if found)
    if never:
        return warning(
            f"never in an image that is trained on, so it cannot be learnt: {', '.join(never)}\n{table}",
            "add a source that has it, correct the label mapping, or take another class set",
            **facts,
        )
    return ok(f"every class occurs; share of the labelled pixels trained on:\n{table}", **facts)


def unlabelled(case: ConfigCase) -> Finding | None:
    """The share of each domain's pixels that have no class."""
    ratios, empty = {}, {}
    for domain in case.domains:
        if domain.index is not None:
            ratios[domain.title], empty[domain.title] = _ignored(domain.index)
    if not ratios:
        return None
    text = ", ".join(f"{title} {ratio:.1%}" for title, ratio in ratios.items())
    blank = [f"{title} {counted(number, 'image')}" for title, number in empty.items() if number]
    text += f"; without any labelled pixel: {', '.join(blank)}" if blank else ""
    facts = {"ignored_ratio": {title: round(ratio, 5) for title, ratio in ratios.items()}, "blank": empty}
    most = max(ratios, key=lambda title: ratios[title])
    if ratios[most] > 0.5:
        return warning(
            f"pixels without a class: {text}",
            f"look at the labels of {most}: more than half of it teaches or scores nothing",
            **facts,
        )
    return ok(f"pixels without a class: {text}", **facts)


def _class_pixels(index: DomainIndex, stop: int) -> npt.NDArray[np.int64]:
    """(K,) pixels per class of the samples below ``stop``."""
    pixels: npt.NDArray[np.int64] = np.zeros(len(index.classes), np.int64)
    for part in index.stretches():
        pixels += index.counts[part.start : min(part.stop, stop)].sum(axis=0, dtype=np.int64)
    return pixels


def _ignored(index: DomainIndex) -> tuple[float, int]:
    """The share of pixels without a class, and how many images have no labelled pixel."""
    area, total, blank = 0, 0, 0
    for part in index.stretches():
        records = index.records[part]  # (n,)
        area += int((records["height"].astype(np.int64) * records["width"].astype(np.int64)).sum())
        labelled = index.counts[part].sum(axis=1, dtype=np.int64)  # (n,)
        total, blank = total + int(labelled.sum()), blank + int((labelled == 0).sum())
    return 1.0 - total / max(1, area), blank


def _table(titles: list[str], names: tuple[str, ...], shares: npt.NDArray[Any]) -> str:
    """A row per class, a column per source; ``-`` where a source lacks the class."""
    left = max(len(name) for name in names)
    widths = [max(len(title), 6) for title in titles]
    lines = [" " * left + "  " + "  ".join(t.rjust(w) for t, w in zip(titles, widths, strict=True))]
    for name, column in zip(names, shares.T, strict=True):
        cells = (
            ("-" if share == 0 else f"{share:.2%}").rjust(w) for share, w in zip(column, widths, strict=True)
        )
        lines.append(name.ljust(left) + "  " + "  ".join(cells))
    return "\n".join(lines)


CHECKS = (
    Check("classes", classes),
    Check("unlabelled", unlabelled),
)
