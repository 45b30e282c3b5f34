"""Every data set by its name."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ppar_dist.class_sets import ClassSet, class_set
from ppar_dist.config.class_file import is_class_file
from ppar_dist.data.prepare import (
    acdc,
    bdd100k,
    camvid,
    cityscapes,
    dark_zurich,
    foggy_cityscapes,
    folder,
    gta5,
    idd,
    labelmefacade,
    mapillary,
    nighttime_driving,
    synthia,
    urbansyn,
    wilddash,
)
from ppar_dist.data.prepare.source import Source
from ppar_dist.errors import DataError
from ppar_dist.text import guess

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        camvid.SOURCE,
        labelmefacade.SOURCE,
        cityscapes.SOURCE,
        gta5.SOURCE,
        synthia.SOURCE,
        urbansyn.SOURCE,
        bdd100k.SOURCE,
        mapillary.V1_2,
        mapillary.V2_0,
        idd.SOURCE,
        idd.LITE_SOURCE,
        wilddash.SOURCE,
        acdc.SOURCE,
        dark_zurich.SOURCE,
        nighttime_driving.SOURCE,
        foggy_cityscapes.source("foggy_cityscapes", "0.02"),
        foggy_cityscapes.source("foggy_cityscapes_0_01", "0.01"),
        foggy_cityscapes.source("foggy_cityscapes_0_005", "0.005"),
    )
}
"""Data sets with a known layout."""

DATASETS: tuple[str, ...] = (*SOURCES, "folder")
"""Every name that ``prepare`` takes."""


def find_source(dataset: str, mapping: Path | None, classes: str) -> Source:
    """The data set of a name; ``folder`` is described by its mapping file, in names of ``classes`` too.

    Raises:
        DataError: no such name, or a mapping file that is missing, malformed or not asked for.
    """
    if dataset not in DATASETS:
        raise _no_data_set(dataset, DATASETS)
    if (dataset == "folder") != (mapping is not None):
        rule = "needs" if dataset == "folder" else "takes no"
        raise DataError(f"data set {dataset} {rule} mapping file; --mapping FILE belongs to `prepare folder`")
    return folder.source(mapping, _of_file(classes)) if mapping is not None else SOURCES[dataset]


def labelled_source(dataset: str) -> Source:
    """The data set of a name whose labels are known without a mapping file; raises DataError for others."""
    if dataset not in SOURCES:
        raise _no_data_set(dataset, SOURCES)
    return SOURCES[dataset]


def _no_data_set(dataset: str, known: Collection[str]) -> DataError:
    hint = guess(dataset, known)
    return DataError(f"unknown data set {dataset!r}{hint}; choose from {', '.join(known)}")


def _of_file(classes: str) -> ClassSet | None:
    return class_set(classes) if is_class_file(classes) else None
