"""State that the checks of a configuration share: each part is read once, on first use."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ppar_dist.checkpoint import list_checkpoints
from ppar_dist.class_sets import ClassSet, recorded_class_set
from ppar_dist.config.schema import Config
from ppar_dist.data.batches import Batching, batching
from ppar_dist.data.class_subset import subset_of
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.sources import check_classes, holdout_range, node_storage
from ppar_dist.doctor.cluster import Cluster
from ppar_dist.doctor.probes import resident_bytes
from ppar_dist.errors import UserError
from ppar_dist.models.backbone import build_backbone
from ppar_dist.models.segmentor import Segmentor, build_segmentor
from ppar_dist.models.weight_file import LoadReport
from ppar_dist.run.facts import CheckpointFacts, read_checkpoint
from ppar_dist.storage.location import Location
from ppar_dist.storage.node import NodeStorage

if TYPE_CHECKING:
    from ppar_dist.doctor.device_cost import ImageCost
    from ppar_dist.doctor.outlook import Outlook

Progress = Callable[[str, int, int], None]  # what, done, in all


@dataclass(frozen=True)
class Domain:
    """A domain folder of the configuration; ``problem`` says why ``index`` is None."""

    name: str
    role: Literal["source", "target"]
    path: Location
    index: DomainIndex | None
    problem: str | None
    shards: tuple[dict[str, Any], ...]  # of domain.json: name, samples, bytes, sha256; () where unreadable

    @property
    def local(self) -> Path | None:
        """The folder, where the shards lie in one; None on object storage."""
        return self.path if isinstance(self.path, Path) else None

    @property
    def title(self) -> str:
        """``source day``."""
        return f"{self.role} {self.name}"


@dataclass
class ConfigCase:
    """A configuration that could be read, and the ranks and machines to check it for.

    Attributes:
        config: the configuration.
        ranks: ranks on this machine.
        nodes: machines like this one.
        quick: compare sizes instead of hashes, and write a smaller probe.
        device: the GPU whose needs are to be told, by name; None: none.
        read_all: read all shards and samples, however many there are.
        progress: called during long work.
        cluster: what the user says of the machines; None: nothing is to be told of many machines.
        process_bytes: memory of a process that has loaded the libraries: of this one, at the start.
    """

    config: Config
    ranks: int = 1
    nodes: int = 1
    quick: bool = False
    device: str | None = None
    read_all: bool = False
    progress: Progress = field(default=lambda what, done, total: None)
    cluster: Cluster | None = None
    process_bytes: int = field(default_factory=resident_bytes)

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.ranks_each * self.nodes

    @property
    def ranks_each(self) -> int:
        """Ranks on each machine of the job: as here, or as told where this machine is none of them."""
        told = self.cluster.gpus_per_node if self.cluster is not None else None
        return self.ranks if told is None else told

    @cached_property
    def classes(self) -> ClassSet:
        """The run's class set; raises UserError if no class set has that name."""
        return recorded_class_set(self.config.data.classes, self.config.run.dir)

    @cached_property
    def domains(self) -> tuple[Domain, ...]:
        """Sources, then targets, in their order, whether they open or not."""
        data, node = self.config.data, node_storage(self.config)
        as_source = lambda index: check_classes(index, self.classes)  # noqa: E731
        as_target = lambda index: subset_of(index, self.classes)  # noqa: E731
        sources = [
            _open("source", item.name, data.root / item.name, as_source, node) for item in data.sources
        ]
        targets = [
            _open("target", name, folder, as_target, node) for name, folder in self.config.targets.items()
        ]
        return (*sources, *targets)

    @property
    def sources(self) -> list[tuple[Domain, DomainIndex]]:
        """The sources that opened."""
        return [(d, d.index) for d in self.domains if d.role == "source" and d.index is not None]

    @property
    def sources_open(self) -> bool:
        """Whether every source opened."""
        return len(self.sources) == len(self.config.data.sources)

    def train_size(self, index: DomainIndex) -> int:
        """Samples of a source that are trained on: all but the held-out ones."""
        return holdout_range(index, self.config.data.holdout).start

    @cached_property
    def batching(self) -> Batching | None:
        """The global batch divided over all ranks; None if it does not divide."""
        try:
            return batching(self.config, self.world_size)
        except UserError:
            return None

    @property
    def needs_text(self) -> bool:
        """Whether the run has text prototypes at all."""
        return self.config.ppar.enabled or self.config.model.classifier != "linear"

    @cached_property
    def segmentor(self) -> Segmentor:
        """The model without its weights: without memory where its library can; raises UserError."""
        with _quiet():
            try:
                with torch.device("meta"):
                    return build_segmentor(self.config, self.classes, load_weights=False)[0]
            # Libraries raise many kinds of errors when they cannot build without memory; then with it.
            except Exception:
                return build_segmentor(self.config, self.classes, load_weights=False)[0]

    @cached_property
    def image_cost(self) -> ImageCost:
        """What an image costs on a GPU; raises UserError."""
        from ppar_dist.doctor.device_cost import image_cost  # loads what no other check needs

        return image_cost(self.config, self.segmentor)

    @cached_property
    def outlook(self) -> Outlook:
        """What the model of many machines is told of this job; raises UserError."""
        from ppar_dist.doctor.outlook import outlook  # as above

        return outlook(self)

    @cached_property
    def loaded(self) -> LoadReport | None:
        """What loading the backbone's file gave; None where a library reads it; raises UserError."""
        with _quiet():
            return build_backbone(self.config.model.backbone).report

    @cached_property
    def passed_over(self) -> list[CheckpointFacts]:
        """Damaged checkpoints of ``run.dir`` newer than the newest whole one, newest first."""
        return self._search[0]

    @cached_property
    def newest(self) -> CheckpointFacts | None:
        """The checkpoint that a job would resume from."""
        return self._search[1]

    @cached_property
    def _search(self) -> tuple[list[CheckpointFacts], CheckpointFacts | None]:
        damaged: list[CheckpointFacts] = []
        for folder in reversed(list_checkpoints(self.config.run.dir)):
            self.progress(f"checkpoint {folder.name}", 0, 1)
            facts = read_checkpoint(folder)
            self.progress(f"checkpoint {folder.name}", 1, 1)
            if facts.whole:
                return damaged, facts
            if folder.is_dir():  # else a running job has just deleted it
                damaged.append(facts)
        return damaged, None


@contextmanager
def _quiet() -> Iterator[None]:
    """Libraries log how they build a model; here its size alone is of interest."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def _open(
    role: Literal["source", "target"],
    name: str,
    path: Location,
    check: Callable[[DomainIndex], object],
    node: NodeStorage,
) -> Domain:
    index, problem = None, None
    try:
        index = DomainIndex.open(path, node=node)
        check(index)
    except UserError as error:
        index, problem = None, str(error)
    except Exception as error:  # a damaged index can raise any exception
        index, problem = (
            None,
            f"{path}: the index is damaged ({type(error).__name__}: {error}); index it again",
        )
    listed: Path | None = path if isinstance(path, Path) else None
    if index is not None:
        listed = index.folder
    return Domain(name, role, path, index, problem, _listed_shards(listed) if listed else ())


def _listed_shards(path: Path) -> tuple[dict[str, Any], ...]:
    """Entries of domain.json, also where the domain does not open because one of them is wrong."""
    try:
        shards = json.loads((path / "domain.json").read_bytes())["shards"]
        return tuple(
            {
                "name": str(item["name"]),
                "samples": int(item["samples"]),
                "bytes": int(item["bytes"]),
                "sha256": str(item["sha256"]),
            }
            for item in shards
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ()
