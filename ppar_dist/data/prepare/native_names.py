"""Whether the native names of a class set are those of data sets, and what labels count as in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ppar_dist.class_sets import IGNORE_INDEX, ClassSet, built_in, class_set
from ppar_dist.data.prepare.known import SOURCES
from ppar_dist.data.prepare.legend import VOID
from ppar_dist.data.prepare.source import Domains, Source
from ppar_dist.errors import DataError
from ppar_dist.text import guess, printable, some

_LISTED = 5  # problems that a message lists


class Counted(NamedTuple):
    """What a label of a data set counts as."""

    native: str
    known: str  # the name by which general lists know it, or what is in its group
    counts_as: str | None  # the class; None for no class


def check_native_names(reference: str, classes: ClassSet) -> None:
    """Refuse lists for data sets that there are not, and names in them that their data sets do not have.

    Args:
        reference: the class set as the user named it.
        classes: that class set.

    Raises:
        DataError: with what is wrong, and the nearest name that there is.
    """
    problems = list(_problems(classes))
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise DataError(f"class set {printable(reference)}: {'; '.join(problems[:_LISTED])}{more}")


def _problems(classes: ClassSet) -> Iterator[str]:
    for title, names in zip(classes.classes, classes.native, strict=False):
        for dataset, name in sorted(names):
            where = f"native of {title}"
            if dataset == "folder":
                yield f"{where}: folder has no names but those of its mapping file; put {name!r} into labels"
            elif dataset not in SOURCES:
                near = guess(dataset, SOURCES) or f"; choose from {', '.join(SOURCES)}"
                yield f"{where}: there is no data set {printable(dataset)!r}{near}"
            elif name not in (known := _own_names(SOURCES[dataset])):
                yield (
                    f"{where}: {dataset} has no label {printable(name)!r}{_nearest(name, known)}; "
                    f"`ppar-dist classes --dataset {dataset}` lists all"
                )


def unknown_labels(reference: str, classes: ClassSet, source: Source | None = None) -> list[str]:
    """A line for each name of the general lists that no known data set has.

    Args:
        reference: the class set as the user named it.
        classes: that class set.
        source: the data set at hand; its names are known too.
    """
    known = _general_names((*SOURCES.values(), *([source] if source else [])))
    known |= {name for built in map(class_set, built_in()) for names in built.members for name in names}
    return [
        f"class set {printable(reference)}: labels of {title}: {_unknown(name, known)}"
        for title, names in zip(classes.classes, classes.members, strict=True)
        for name in sorted(names - known - {title})
    ]


def _unknown(name: str, known: set[str]) -> str:
    holders = [dataset for dataset, source in SOURCES.items() if name in _own_names(source)]
    if holders:
        remedy = f"native: {{{holders[0]}: [{name}]}}"
        return f"{name!r} is a name of {some(holders)} alone and has no effect here; write {remedy}"
    return (
        f"no known data set has {printable(name)!r}{_nearest(name, known)}; it counts only where a mapping "
        "file of `prepare folder` has that name"
    )


def names_not_told_apart(reference: str, classes: ClassSet, source: Source, domains: Domains) -> list[str]:
    """A line where names listed for the data set are in none of the label files at hand."""
    listed = {name for names in classes.native for dataset, name in names if dataset == source.name}
    if not listed or source.legend.labels_of is None:
        return []
    kinds = {source.legend.labels_of(pair.label) for pairs in domains.values() for pair in pairs}
    there = {name.lower() for labels in kinds for label in labels for name in label.own_names}
    lost = sorted(listed - there)
    return [
        f"class set {printable(reference)}: these label files do not tell {some(lost)} apart, so the list "
        f"for {source.name} has no effect there; another kind of its label files may (docs/data.md)"
    ] * bool(lost)


def counted(source: Source, classes: ClassSet | None) -> list[Counted]:
    """Every label of a data set and its class in a class set; none has one without a class set."""
    found = []
    for label in source.legend.labels:
        index = source.naming(classes).train_id(label) if classes else IGNORE_INDEX
        counts_as = classes.classes[index] if classes and index != IGNORE_INDEX else None
        known = ", ".join(name for name in label.known if name not in (label.native, VOID))
        found.append(Counted(label.native, known, counts_as))
    return found


def _own_names(source: Source) -> list[str]:
    names = (name.lower() for label in source.legend.labels for name in label.own_names)
    return list(dict.fromkeys(names))


def _general_names(sources: Iterable[Source]) -> set[str]:
    return {
        name.strip().lower() for source in sources for label in source.legend.labels for name in label.known
    }


def _nearest(name: str, known: Iterable[str]) -> str:
    """The closest name, or one that holds this one, such as the last part of a long one."""
    names = sorted(known)
    holding = [each for each in names if name in each]
    return guess(name, names) or (f"; did you mean {holding[0]}?" if holding else "")
