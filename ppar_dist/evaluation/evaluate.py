"""Evaluation: whole images, logits at the label's own size, one confusion matrix per domain.

A sample that cannot be used is left out, named in the log and counted in the results; more of a domain than
``data.max_bad_ratio`` allows make its figures worth nothing, and are refused.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppar_dist.checkpoint import opened, read_manifest, read_state, write_atomically
from ppar_dist.class_sets import ClassSet
from ppar_dist.config.schema import Config
from ppar_dist.data.quarantine import FEW_SAMPLES
from ppar_dist.data.reading import EvalSample, eval_samples
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import SampleError
from ppar_dist.data.sources import check_classes, holdout_range
from ppar_dist.errors import UserError
from ppar_dist.evaluation.confusion import ConfusionMatrix
from ppar_dist.evaluation.labelling import predict_labels
from ppar_dist.evaluation.load import read_segmentor
from ppar_dist.evaluation.prediction_examples import ExampleFolder, spread
from ppar_dist.run import paths

_TRAINED_ON = "trained on this domain: no score of domains it never saw"
_NAMED = 20  # samples left out of a domain that the log names; of more, only their number

log = logging.getLogger(__name__)


class HeldOut(NamedTuple):
    """What one rank, or the sum of all, found on the held-out part of M sources with K classes."""

    counts: Tensor  # (M, K, K) int64: rows are labels, columns predictions
    left_out: Tensor  # (M,) int64 samples that could not be used


@dataclass(frozen=True)
class TargetResult:
    """What a checkpoint scores on one domain; ratios from 0 to 1, None for a class the domain lacks."""

    domain: str
    images: int
    miou: float | None
    pixel_accuracy: float | None
    iou: dict[str, float | None]
    left_out: int = 0  # samples that could not be used, and are not among the images
    trained_on: bool = False  # a source of the checkpoint: the score says nothing of domains it never saw
    stored: str = ""  # how `prepare` encoded the images again; "" where it did not, or made another


@dataclass(frozen=True)
class Results:
    """The table of one checkpoint over its targets."""

    run: str
    checkpoint: str
    step: int
    classes: tuple[str, ...]
    targets: dict[str, TargetResult]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in ``results.json``."""
        return asdict(self)

    def to_json(self) -> str:
        """``to_dict`` as JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    def write(self, path: Path) -> None:
        """Replace ``path`` by the JSON text."""
        write_atomically(path, self.to_json() + "\n")

    def table(self) -> str:
        """Plain text columns for a terminal: per cent, ``-`` where a class does not occur.

        How many samples were left out is a column if any were. Images that are not as they came are told:
        their scores are not those of the published protocol.
        """
        some = any(item.left_out for item in self.targets.values())
        head = ["target", "images", *(["left out"] if some else []), "mIoU", "pixel acc", *self.classes]
        rows = [
            [name, str(item.images), *([str(item.left_out)] if some else [])]
            + [_percent(item.miou), _percent(item.pixel_accuracy)]
            + [_percent(item.iou[label]) for label in self.classes]
            for name, item in self.targets.items()
        ]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = []
        for first, *cells in [head, *rows]:
            figures = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
            lines.append("  ".join([first.ljust(widths[0]), *figures]))
        lines.append(f"{self.run}: {self.checkpoint}, step {self.step}")
        lines += [f"{name}: {_TRAINED_ON}" for name, item in self.targets.items() if item.trained_on]
        lines += [f"{name}: images are {item.stored}" for name, item in self.targets.items() if item.stored]
        return "\n".join(lines)


def confusion(
    segmentor: nn.Module,
    samples: Any,
    num_classes: int,
    device: torch.device | str = "cpu",
    watch: Callable[[int, EvalSample, Tensor], None] | None = None,
) -> tuple[ConfusionMatrix, int]:
    """The confusion matrix over an iterable of EvalSample, and how many there were.

    ``watch(number, sample, predicted)`` sees each prediction, for example to save it.
    """
    matrix = ConfusionMatrix(num_classes)
    count = 0
    for sample in samples:
        height, width = sample.label.shape
        predicted = predict_labels(segmentor, sample.image.to(device), (height, width)).cpu()
        matrix.update(predicted, sample.label)
        if watch is not None:
            watch(count, sample, predicted)
        count += 1
    return matrix, count


def evaluate(
    path: Path,
    targets: Mapping[str, Path],
    device: torch.device | str = "cpu",
    which: str = "latest",
    examples: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Results:
    """Score a run or checkpoint on domains of labelled shards.

    Args:
        path: a run folder or a checkpoint folder.
        targets: name in the table to domain folder (shards and index).
        device: where the model runs.
        which: ``latest`` or ``best`` (on held-out source data), for a run folder.
        examples: a folder for a few predictions per target, shown by the report; None: none are kept.
        progress: called with (target, images done, images in all).

    Raises:
        UserError: the checkpoint or a target is unusable, or their classes differ, or more samples of a
            target are bad than ``data.max_bad_ratio`` of the run allows.
    """
    if not targets:
        raise UserError("nothing to evaluate on: give --target NAME=FOLDER, or targets in the configuration")
    with opened(Path(path), which) as checkpoint:
        segmentor, config, classes = read_segmentor(checkpoint, device)
        step = int(read_state(checkpoint).get("step", 0))
        sources = read_manifest(checkpoint).get("data", {}).values()  # fingerprints
        run = config.run.name or config.run.dir.name
        log.info("scoring %s of %s, step %d", checkpoint.name, run, step)
    most = config.data.max_bad_ratio
    indexes = {name: open_target(folder, classes, most) for name, folder in targets.items()}
    folder = ExampleFolder(examples, classes) if examples is not None else None
    results = {}
    for name, index in indexes.items():
        watch = _watcher(name, len(index), folder, progress)
        left_out = LeftOut(name)
        samples = eval_samples(index, 0, len(index), config.data.size, left_out)
        matrix, count = confusion(segmentor, samples, classes.num_classes, device, watch)
        refuse_too_many([name], [left_out.count], [len(index)], most)
        found = target_result(index, matrix, count, left_out.count)
        results[name] = replace(found, trained_on=index.fingerprint in sources)
    if folder is not None:
        folder.close()
    return Results(run, checkpoint.name, step, classes.classes, results)


def score(
    path: Path,
    targets: Mapping[str, Path],
    device: torch.device | str = "cpu",
    which: str = "latest",
    progress: Callable[[str, int, int], None] | None = None,
) -> Results:
    """``evaluate``; a run's folder keeps the table, and the pictures of its last checkpoint."""
    is_run = paths.config_file(path).exists()
    if is_run and not os.access(path, os.W_OK):  # before the work, not after it
        log.warning("%s may not be written: its %s stays as it is", path, paths.RESULTS)
        is_run = False
    if is_run and (path / paths.RESULTS).is_dir():
        raise UserError(f"{path / paths.RESULTS} is a file of results, but here a folder; rename it")
    pictures = paths.predictions(path) if is_run and which == "latest" else None
    results = evaluate(path, targets, device, which, pictures, progress)
    if is_run:
        keep_results(path / paths.RESULTS, results)
    return results


def keep_results(file: Path, results: Results) -> None:
    """Add a table to a run's file of results, which loses none, also where two evaluations end at once.

    A target is replaced only by the same name and checkpoint. The newest checkpoint has the file, the tables
    of older ones are its "earlier", newest first.
    """
    with _held(file.parent):
        new, tables = results.to_dict(), _read_tables(file)
        of_same = [table for table in tables if _checkpoint(table) == _checkpoint(new)]
        for table in reversed(of_same):
            new["targets"] = table.get("targets", {}) | new["targets"]
        others = [table for table in tables if table not in of_same]
        first, *earlier = sorted([new, *others], key=lambda table: _checkpoint(table)[0], reverse=True)
        write_atomically(file, json.dumps(first | ({"earlier": earlier} if earlier else {}), indent=1) + "\n")


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """One evaluation at a time writes the block's file; storage without locks does without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _checkpoint(table: Mapping[str, Any]) -> tuple[int, str]:
    step = table.get("step")
    return step if isinstance(step, int) else -1, str(table.get("checkpoint"))


def _read_tables(file: Path) -> list[dict[str, Any]]:
    """The tables in a file of results, newest first; none where it holds another thing."""
    if not file.exists():
        return []
    try:
        first = json.loads(file.read_text("utf-8"))
        tables = [first, *first.pop("earlier", [])]
        if not all(isinstance(table.get("targets", {}), dict) for table in tables):
            raise TypeError("targets are a table by name")
    except (ValueError, TypeError, AttributeError):
        aside = file.with_name(f"{file.name}.damaged")
        log.warning("%s cannot be read; it is kept as %s", file, aside.name)
        file.replace(aside)
        return []
    return tables


class LeftOut:
    """Counts the samples of a domain that an evaluation leaves out, and names them in the log."""

    def __init__(self, domain: str) -> None:
        self.domain, self.count = domain, 0

    def __call__(self, sample: int, error: SampleError) -> None:
        """Leave out ``sample``; to be passed to ``eval_samples``."""
        self.count += 1
        if self.count <= _NAMED:
            log.warning("left out of the evaluation of %s (%s): %s", self.domain, error.reason, error)
        elif self.count == _NAMED + 1:
            log.warning("left out of the evaluation of %s: more samples, which are counted", self.domain)


def refuse_too_many(
    domains: Sequence[str], left_out: Sequence[int], samples: Sequence[int], max_bad_ratio: float
) -> None:
    """Raises UserError where an evaluation leaves out more than ``max_bad_ratio`` of a domain's samples.

    As in training a domain counts as at least ``FEW_SAMPLES``.
    """
    problems = []
    for name, bad, size in zip(domains, left_out, samples, strict=True):
        allowed = max_bad_ratio * max(size, FEW_SAMPLES)
        if bad > allowed:
            problems.append(f"domain {name}: {bad} of {size} samples are bad, {allowed:.0f} may be left out")
    if problems:
        raise UserError(
            f"too much bad data for an evaluation (data.max_bad_ratio={max_bad_ratio:g} of a domain's "
            f"samples, counted as at least {FEW_SAMPLES}): {'; '.join(problems)}. The log names them; "
            "repair the shards and index them again, or raise data.max_bad_ratio"
        )


def open_target(folder: Path, classes: ClassSet, max_missing_ratio: float | None = None) -> DomainIndex:
    """Open a target domain and hold it to the model's class set.

    Args:
        folder: the domain.
        classes: of the model.
        max_missing_ratio: share of samples that may be missing with their shards; None: every shard is whole.

    Raises:
        UserError: the domain is unusable, or of another class set.
    """
    index = DomainIndex.open(Path(folder), max_missing_ratio)
    check_classes(index, classes.name)
    return index


def target_result(
    index: DomainIndex, matrix: ConfusionMatrix, images: int, left_out: int = 0
) -> TargetResult:
    """Figures of a confusion matrix."""
    iou = [_figure(value) for value in matrix.iou().tolist()]
    miou, accuracy = _figure(matrix.miou()), _figure(matrix.accuracy())
    by_class = dict(zip(index.classes, iou, strict=True))
    return TargetResult(index.name, images, miou, accuracy, by_class, left_out, stored=index.encoded_again)


def held_out(
    segmentor: nn.Module,
    config: Config,
    indexes: Sequence[DomainIndex],
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    alive: Callable[[], None] = lambda: None,
) -> HeldOut:
    """Confusion counts on the held-out part of each source, this rank's share of the samples.

    Summed over the ranks, the counts are those of a single rank: integers, so exactly. ``alive`` is called
    after each sample. Whether too many were left out is for the caller to ask, who knows the sum.
    """
    counts, left_out = [], []
    for index in indexes:
        held = holdout_range(index, config.data.holdout)
        start = held.start + len(held) * rank // world_size
        stop = held.start + len(held) * (rank + 1) // world_size
        bad = LeftOut(index.name)
        samples = eval_samples(index, start, stop, config.data.size, bad)
        matrix, _ = confusion(segmentor, samples, len(index.classes), device, lambda *_: alive())
        counts.append(matrix.counts)
        left_out.append(bad.count)
    return HeldOut(torch.stack(counts), torch.tensor(left_out))


def _watcher(
    name: str,
    total: int,
    folder: ExampleFolder | None,
    progress: Callable[[str, int, int], None] | None,
) -> Callable[[int, EvalSample, Tensor], None]:
    chosen = spread(total)

    def watch(number: int, sample: EvalSample, predicted: Tensor) -> None:
        if folder is not None and number in chosen:
            folder.add(name, sample.key, sample.image, sample.label, predicted)
        if progress is not None:
            progress(name, number + 1, total)

    return watch


def _figure(value: float) -> float | None:
    return None if value != value else value


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
