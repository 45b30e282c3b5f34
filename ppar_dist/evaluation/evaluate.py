"""Evaluation: one confusion matrix per domain, under one protocol, shared out over the ranks.

A sample that cannot be used is left out, named in the log and counted in the results; more of a domain than
``data.max_bad_ratio`` allows make its figures worth nothing, and are refused.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppar_dist.checkpoint import opened, read_manifest, read_state, reading, resolve
from ppar_dist.class_sets import ClassSet
from ppar_dist.config.load import load_config
from ppar_dist.config.schema import Config
from ppar_dist.data.class_subset import ClassSubset, subset_of
from ppar_dist.data.eval_batches import EvalBatch
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.sources import node_storage
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError
from ppar_dist.evaluation.confusion import ConfusionMatrix
from ppar_dist.evaluation.counting import LeftOut, count_pairs, loading_of, refuse_too_many
from ppar_dist.evaluation.load import classes_of, config_of, read_segmentor
from ppar_dist.evaluation.options import check_options, with_options
from ppar_dist.evaluation.prediction_examples import PER_TARGET, ExampleFolder, spread
from ppar_dist.evaluation.protocol import Protocol, held_out_protocol, protocol_of
from ppar_dist.evaluation.results import Results, TargetResult, keep_results
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.run import paths
from ppar_dist.run.state import TrainState
from ppar_dist.storage.location import Location
from ppar_dist.storage.node import NodeStorage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranks:
    """Who takes part in an evaluation, and how they tell that they live.

    Args:
        world: the ranks, all of which call the same.
        alive: called after each batch.
        enter: called with the name of each phase.
    """

    world: World = field(default_factory=World)
    alive: Callable[[], None] = lambda: None
    enter: Callable[[str], None] = lambda name: None


def evaluate(
    path: Path,
    targets: Mapping[str, Location],
    device: torch.device | str = "cpu",
    which: str = "latest",
    examples: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    options: Mapping[str, Any] | None = None,
    ranks: Ranks | None = None,
    weights: str = "raw",
) -> Results:
    """Score a run or checkpoint on domains of labelled shards. Collective.

    Args:
        path: a run folder or a checkpoint folder.
        targets: name in the table to domain folder (shards and index), or its URL.
        device: where the model runs.
        which: ``latest`` or ``best`` (on held-out source data), for a run folder.
        examples: a folder for a few predictions per target, shown by the report; None: none are kept.
        progress: called with (target, images done, images in all), on rank 0.
        options: keys of the configuration's section ``evaluation`` that replace the run's.
        ranks: who takes part; None: this process alone.
        weights: ``raw``, of the last step, or ``averaged``, their moving average: told like a protocol.

    Returns:
        The same on every rank.

    Raises:
        UserError: the checkpoint or a target is unusable, or their classes differ, or more samples of a
            target are bad than ``data.max_bad_ratio`` of the run allows.
    """
    if not targets:
        raise UserError("nothing to evaluate on: give --target NAME=FOLDER, or targets in the configuration")
    ranks, options = Ranks() if ranks is None else ranks, options or {}
    check_options(options)
    with _opened(Path(path), which, ranks.world) as checkpoint:
        config = with_options(config_of(checkpoint), options)
        classes, most = classes_of(checkpoint, config), config.data.max_bad_ratio
        node = node_storage(config)
        opened_targets = {name: open_target(folder, classes, most, node) for name, folder in targets.items()}
        segmentor, _, _ = read_segmentor(checkpoint, device, weights)
        state = TrainState.from_json(read_state(checkpoint))
        sources = read_manifest(checkpoint).get("data", {}).values()  # fingerprints
    run, protocol = config.run.name or config.run.dir.name, protocol_of(config)
    how = str(protocol) if weights == "raw" else f"{protocol}, {weights} weights"
    if ranks.world.is_main:
        log.info("scoring %s of %s, step %d: %s", checkpoint.name, run, state.step, how)
        if state.lacks_refit(config.refit):
            log.warning("%s is from before the refit at the end of its run", checkpoint.name)
    folder = ExampleFolder(examples, classes, ranks.world) if examples is not None else None
    results = {}
    for number, (name, (index, subset)) in enumerate(opened_targets.items()):
        watch = _Watch(name, number, index, folder, progress, ranks)
        found = _score_target(segmentor, config, protocol, name, index, subset, watch, device)
        results[name] = replace(found, trained_on=index.fingerprint in sources)
        watch.finish()
    if folder is not None:
        folder.close()
    return Results(run, checkpoint.name, state.step, classes.classes, results, how)


def _score_target(
    segmentor: Segmentor,
    config: Config,
    protocol: Protocol,
    name: str,
    index: DomainIndex,
    subset: ClassSubset,
    watch: _Watch,
    device: torch.device | str,
) -> TargetResult:
    """This rank's share of a target, and the sum over all of them: integers, so the same on any number."""
    world = watch.ranks.world
    watch.ranks.enter("evaluate")
    loading, left_out = loading_of(config, protocol, world.rank, world.world_size), LeftOut(name)
    samples, coarsest = range(len(index)), math.ceil(max(segmentor.backbone.strides))

    def seen(batch: EvalBatch, predicted: Tensor) -> None:
        protocol.refuse_tiny([(each.shape[2], each.shape[3]) for each in batch.images], coarsest)
        watch(batch, predicted)

    matrix, images = count_pairs(segmentor, index, samples, protocol, loading, left_out, device, seen, subset)
    found = torch.cat([matrix.counts.flatten(), torch.tensor([images, left_out.count])])
    watch.ranks.enter("all-reduce")
    *_, images, bad = total = world.sum(found.to(world.device)).cpu().tolist()
    refuse_too_many([name], [bad], [len(index)], config.data.max_bad_ratio)
    counts = torch.tensor(total[:-2]).view_as(matrix.counts)
    return target_result(index, ConfusionMatrix.of(counts), images, bad, subset)


def score(
    path: Path,
    targets: Mapping[str, Location],
    device: torch.device | str = "cpu",
    which: str = "latest",
    progress: Callable[[str, int, int], None] | None = None,
    options: Mapping[str, Any] | None = None,
    ranks: Ranks | None = None,
    weights: str = "raw",
) -> Results:
    """``evaluate``; a run's folder keeps the table, and the pictures of its last checkpoint.

    The pictures are those of the run's own protocol.
    """
    world = World() if ranks is None else ranks.world
    is_run = world.on_main(lambda: _is_open_run(path))
    own_scores = which == "latest" and weights == "raw" and not options
    pictures = paths.predictions(path) if is_run and own_scores else None
    results = evaluate(path, targets, device, which, pictures, progress, options, ranks, weights)
    if is_run and world.is_main:
        config = load_config(paths.config_file(path))
        own, before = str(protocol_of(config)), str(held_out_protocol(config))
        keep_results(path / paths.RESULTS, results, own, before)
    return results


def _is_open_run(path: Path) -> bool:
    """Whether a run lies there that can keep its results; asked before the work, not after it."""
    if not paths.config_file(path).exists():
        return False
    if not os.access(path, os.W_OK):
        log.warning("%s may not be written: its %s stays as it is", path, paths.RESULTS)
        return False
    if (path / paths.RESULTS).is_dir():
        raise UserError(f"{path / paths.RESULTS} is a file of results, but here a folder; rename it")
    return True


@contextmanager
def _opened(path: Path, which: str, world: World) -> Iterator[Path]:
    """The same checkpoint on every rank, verified by rank 0."""
    if world.world_size == 1:
        with opened(path, which) as checkpoint:
            yield checkpoint
        return
    with reading(world.on_main(lambda: resolve(path, which))) as checkpoint:
        yield checkpoint


def open_target(
    folder: Location | str,
    classes: ClassSet,
    max_missing_ratio: float | None = None,
    node: NodeStorage | None = None,
) -> tuple[DomainIndex, ClassSubset]:
    """Open a target domain and hold it to the model's class set.

    Args:
        folder: the domain, or its URL.
        classes: of the model.
        max_missing_ratio: share of samples that may be missing with their shards; None: every shard is whole.
        node: what this node does with object storage; None: the usual.

    Returns:
        The domain, and which of the model's classes it has.

    Raises:
        UserError: the domain is unusable, or has classes that the model has not.
    """
    index = DomainIndex.open(folder, max_missing_ratio, node)
    return index, subset_of(index, classes)


def target_result(
    index: DomainIndex, matrix: ConfusionMatrix, images: int, left_out: int, subset: ClassSubset
) -> TargetResult:
    """Figures of a confusion matrix of the model's classes, over those that the target has."""
    found = subset.chosen(matrix.iou())
    iou = [_figure(value) for value in found.tolist()]
    miou, accuracy = _figure(float(found.nanmean())), _figure(matrix.accuracy())
    by_class = dict(zip(index.classes, iou, strict=True))
    return TargetResult(
        *(index.name, images, miou, accuracy, by_class, left_out),
        stored=index.encoded_again,
        fingerprint=index.fingerprint,
        scored=subset.text,
        confusion=matrix.counts.tolist(),
    )


class _Watch:
    """Follows the batches of a target: keeps examples, and tells how far they are."""

    def __init__(
        self,
        target: str,
        number: int,
        index: DomainIndex,
        folder: ExampleFolder | None,
        progress: Callable[[str, int, int], None] | None,
        ranks: Ranks,
    ) -> None:
        self.target, self.total, self.folder, self.ranks = target, len(index), folder, ranks
        self.progress = progress if ranks.world.is_main else None
        chosen = sorted(spread(len(index)))
        self.examples = {sample: number * PER_TARGET + at for at, sample in enumerate(chosen)}
        self.done = 0

    def __call__(self, batch: EvalBatch, predicted: Tensor) -> None:
        for at, sample in enumerate(batch.samples):
            if self.folder is not None and sample in self.examples:
                shown = batch.images[0][at], batch.labels[at], predicted[at].cpu()
                self.folder.add(self.examples[sample], self.target, batch.keys[at], *shown)
        self.ranks.alive()
        self.done += len(batch.keys) * self.ranks.world.world_size  # as if all were as fast
        if self.progress is not None and self.done < self.total:
            self.progress(self.target, self.done, self.total)

    def finish(self) -> None:
        """All ranks are done."""
        if self.progress is not None:
            self.progress(self.target, self.total, self.total)


def _figure(value: float) -> float | None:
    return None if value != value else value
