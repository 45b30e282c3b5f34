"""The source domains of a run: open, of one class set, with a held-out part and a share of the positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ppar_dist.class_sets import ClassSet, recorded_class_set
from ppar_dist.config.schema import Config
from ppar_dist.data.order import DomainShare
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.errors import DataError
from ppar_dist.storage.location import Remote
from ppar_dist.storage.node import NodeStorage, usual_folder


def open_sources(cfg: Config, classes: ClassSet | None = None) -> list[DomainIndex]:
    """Open every source domain of the configuration, in its order, for training.

    A missing or changed shard is a warning: a run that has met it must be able to resume. Its samples are
    replaced at their turn.

    Raises:
        DataError: a folder is missing, more than ``data.max_bad_ratio`` of a domain's samples went with
            shards, or a domain has another class set than ``classes`` (None: the run's).
    """
    wanted = recorded_class_set(cfg.data.classes, cfg.run.dir) if classes is None else classes
    node = node_storage(cfg)
    if isinstance(cfg.data.root, Remote):
        node.prepare()
    indexes = [
        DomainIndex.open(cfg.data.root / source.name, cfg.data.max_bad_ratio, node)
        for source in cfg.data.sources
    ]
    for index in indexes:
        check_classes(index, wanted)
    return indexes


def node_storage(cfg: Config) -> NodeStorage:
    """What a node does with object storage for a run."""
    cache = cfg.data.cache
    return NodeStorage(
        folder=usual_folder() if cache.folder is None else cache.folder,
        size=cache.size,
        patience_s=cfg.faults.storage_s,
        ahead=cache.ahead,
        # Samples that stand together are read together, but for those that are drawn one by one.
        together=1 if cfg.data.rare_classes.enabled else cfg.data.block,
    )


def check_classes(index: DomainIndex, wanted: ClassSet) -> None:
    """Raises UserError, naming both class sets, when a domain's is not the wanted one."""
    if index.class_set != wanted.name or index.classes != wanted.classes:
        raise DataError(
            f"domain {index.name} has class set {index.class_set} {list(index.classes)}, the run has "
            f"{wanted.name} {list(wanted.classes)}; prepare it with {classes_option(wanted)}"
        )


def classes_option(wanted: ClassSet) -> str:
    """The option of ``prepare`` that gives a class set."""
    stem, _, digest = wanted.name.partition("@")
    return f"--classes {stem}.yaml, the run's file of classes" if digest else f"--classes {stem}"


def holdout_range(index: DomainIndex, holdout: float) -> range:
    """Sample numbers never trained on: the last ceil(holdout * N) of a domain."""
    size = len(index)
    return range(size - math.ceil(holdout * size - 1e-9), size)


def training_shares(cfg: Config, indexes: Sequence[DomainIndex]) -> list[DomainShare]:
    """Size and weight of each source; without configured weights a domain counts by its size.

    Raises:
        DataError: nothing of a domain is left to train on.
    """
    shares = []
    for source, index in zip(cfg.data.sources, indexes, strict=True):
        size = holdout_range(index, cfg.data.holdout).start
        if size == 0:
            raise DataError(
                f"domain {index.name} has {len(index)} samples and data.holdout={cfg.data.holdout} "
                "leaves none for training; lower it or remove the domain"
            )
        shares.append(DomainShare(index.name, size, float(source.weight or size)))
    return shares
