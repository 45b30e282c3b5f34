"""The most distrusted regions of a run's sources: where to look for faults of labelling.

::

    <run>/audit/
      regions.json      trust by domain and class, the classes that distrusted labels may stand for
                        (may_be: domain, label, class, likelihood beside that of the likeliest class),
                        and the regions, each with
                        domain, key, class, judged_as, trust, weight, pixels, box, picture
      000.png           a region outlined in its image and in its label map

The judges are those of ``ppar.trust``: they look at the tower as it was loaded, by ``init_from`` too, so what
the run has learned does not matter, and it need not have used them. Images are seen at ``data.size``.
Letters: K classes, (h, w) grid of cells, (H, W) pixels of the image seen.
"""

from __future__ import annotations

import heapq
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ppar_dist import checkpoint
from ppar_dist.checkpoint import write_atomically
from ppar_dist.class_sets import ClassSet, recorded_class_set
from ppar_dist.config.load import load_config
from ppar_dist.config.schema import Config
from ppar_dist.data.reading import EvalSample, eval_samples
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.sources import open_sources
from ppar_dist.errors import UserError
from ppar_dist.evaluation.counting import LeftOut
from ppar_dist.evaluation.load import read_segmentor
from ppar_dist.evaluation.palette_images import palette_image, write_picture
from ppar_dist.evaluation.survey import (
    NOT_JUDGED,
    RANDOM_TOWER,
    TowerFeatures,
    evenly,
    is_random,
    labels_of_cells,
    survey_sources,
)
from ppar_dist.models.backbone import Backbone, build_backbone
from ppar_dist.ppar.cells import cells_to_pixels
from ppar_dist.ppar.gaussian import LinearClassifier
from ppar_dist.ppar.trust import Survey, reliability
from ppar_dist.run import paths
from ppar_dist.storage.location import Location

log = logging.getLogger(__name__)

_DISTRUSTED = 0.5  # p_y / max p below which a cell belongs to a region
_MENTIONED = 0.1  # likelihood above which a class that a label may stand for is listed
_FEWEST = 4  # cells of a region: a cell at the border of two classes says nothing
_RED = np.array([255, 40, 40], np.uint8)

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Region:
    """Connected cells of one label that the judge distrusts."""

    domain: str
    key: str
    label: str
    judged_as: str  # the class that the judge finds most probable
    trust: float  # in the class of the domain
    weight: float  # trust times mean p_y / max p over its cells
    pixels: int  # of the stored label map, about
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels of the stored label map

    @property
    def loss(self) -> tuple[float, float]:
        """What ranks regions: pixels by how little their label is trusted, then by the judge's own view.

        A judge errs on hard cells of a right source, so a region of a class that is trusted comes last.
        """
        return self.pixels * (1.0 - self.trust), self.pixels * (1.0 - self.weight)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in ``regions.json``."""
        values = asdict(self)
        values["class"] = values.pop("label")
        return values


@dataclass(frozen=True)
class Audit:
    """What was found."""

    images: dict[str, int]  # looked at, by domain
    trust: dict[str, dict[str, float]]  # by domain and class, where it was judged
    may_be: dict[str, dict[str, dict[str, float]]]  # domain, label, class: likelihood, of distrusted labels
    regions: list[Region]  # the most distrusted first
    folder: Path

    @property
    def list(self) -> Path:
        """The JSON file."""
        return self.folder / paths.REGIONS

    def table(self) -> str:
        """Trust by domain and class as plain text columns; below it, what distrusted labels may stand for."""
        names = sorted({name for row in self.trust.values() for name in row})
        rows = [["domain", "images", *names]]
        for domain, row in self.trust.items():
            cells = (f"{row[name]:.2f}" if name in row else "-" for name in names)
            rows.append([domain, str(self.images[domain]), *cells])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = (
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            )
            for row in rows
        )
        return "\n".join([*lines, *([] if names else [NOT_JUDGED]), *self._lines_of_meanings()])

    def _lines_of_meanings(self) -> Iterator[str]:
        for domain, labels in self.may_be.items():
            for label, likely in labels.items():
                ranked = sorted(likely.items(), key=lambda each: -each[1])
                found = ", ".join(f"{one} {value:.2f}" for one, value in ranked)
                yield f"{domain}: label {label} may be {found}"


@dataclass(frozen=True)
class _Found:
    """A region with what its picture needs."""

    region: Region
    sample: EvalSample
    mask: Mask  # (H, W) of the image seen


def audit(
    run: Path,
    images: int = 200,
    most: int = 50,
    device: torch.device | str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> Audit:
    """Judge the labels of a run's sources, and write the most distrusted regions into its folder.

    Args:
        run: a run folder.
        images: of each source, spread evenly; 0: all.
        most: regions to keep.
        device: where the tower runs.
        progress: called with (domain, images done, images in all).

    Raises:
        UserError: the run has fewer than two sources or cannot be written to, or a source or the tower's
            weights cannot be used.
    """
    run = Path(run)
    config, classes, indexes = _sources(run)
    if not os.access(run, os.W_OK):  # asked before the work, not after it
        raise UserError(f"an audit is written into its run, and {run} may not be written; copy the run")
    if config.init_from is None and is_random(config.model.backbone):
        log.warning("audit: %s", RANDOM_TOWER[0])
    torch.manual_seed(config.seed)
    backbone = _as_the_run_began(config, run).to(device).eval()
    judged = survey_sources(backbone, config, indexes, classes.num_classes, device)
    worst, looked = _Worst(most), {}
    for number, index in enumerate(indexes):
        name = config.data.sources[number].name
        chosen, left_out = evenly(len(index), images), LeftOut(name, "audit")
        look = _Judge(
            TowerFeatures(backbone), judged.judges[number], judged.trust[number], name, config, classes
        )
        for done, at in enumerate(chosen, start=1):
            for sample in eval_samples(index, at, at + 1, config.data.size, left_out):
                worst.take(look.at(sample, device))
            if progress is not None:
                progress(name, done, len(chosen))
        looked[name] = len(chosen) - left_out.count
    ranked = worst.ranked()
    trust = _by_class(list(looked), classes, judged)
    may_be = _meanings(list(looked), classes, judged)
    result = Audit(looked, trust, may_be, [one.region for one in ranked], paths.audit(run))
    _write(result, ranked, classes)
    return result


def _sources(run: Path) -> tuple[Config, ClassSet, list[DomainIndex]]:
    """A run's configuration, class set and sources, of which there are several."""
    if not paths.config_file(run).exists():
        raise UserError(f"an audit is written into a run folder, and {run} has no config.yaml; give the run")
    config = load_config(paths.config_file(run))
    names = [source.name for source in config.data.sources]
    if len(names) < 2:
        raise UserError(
            f"an audit lets sources judge each other, and {run} has {names[0]} alone; give a run of several"
        )
    classes = recorded_class_set(config.data.classes, run)
    return config, classes, open_sources(config, classes)


def _as_the_run_began(config: Config, run: Path) -> Backbone:
    """The backbone before the first step, without adapters, which change nothing there.

    Raises:
        UserError: the checkpoint that ``init_from`` took is gone, or another has its place.
    """
    backbone = build_backbone(config.model.backbone)
    if backbone.adapters is not None:
        backbone.remove_adapters(merge=False)
    if config.init_from is not None:
        found = _origin(config.init_from, run)
        with checkpoint.reading(found), torch.random.fork_rng(devices=[]):
            theirs = read_segmentor(found)[0].backbone.state_dict()
        places = backbone.state_dict()
        fits = [name for name in places if name in theirs and theirs[name].shape == places[name].shape]
        if any(name.startswith("tower.") for name in fits):  # else only the decoder was taken
            for name in fits:
                places[name].copy_(theirs[name])
    return backbone


def _origin(place: Location, run: Path) -> Path:
    """The checkpoint that a run began with, by the note in its newest one."""
    newest = checkpoint.find_checkpoint(run)
    noted = {} if newest is None else checkpoint.read_state(newest).get("started_from") or {}
    name, whole = noted.get("checkpoint", ""), place
    began = f"{run} began with init_from={place} {name}".rstrip() + ", whose tower judges"
    if place.name != name and name:
        whole = place / "checkpoints" / name
    try:
        found = checkpoint.resolve(whole) if isinstance(whole, Path) else checkpoint.fetched_checkpoint(whole)
    except UserError as error:
        raise UserError(f"{began}, and it cannot be read: {error}") from None
    if noted and checkpoint.read_manifest(found)["manifest_sha256"] != noted["sha256"]:
        raise UserError(f"{began}, and what lies at {found} is another by now; put that one back")
    return found


class _Worst:
    """The most distrusted regions of all that were seen; of equals the first ones stay."""

    def __init__(self, most: int) -> None:
        self._most, self._order = most, count(0, -1)
        # A heap: the least distrusted of those kept comes first.
        self._heap: list[tuple[tuple[float, float], int, _Found]] = []

    def take(self, found: Iterator[_Found]) -> None:
        """Keep those that are among the worst."""
        for one in found:
            heapq.heappush(self._heap, (one.region.loss, next(self._order), one))
            if len(self._heap) > self._most:
                heapq.heappop(self._heap)

    def ranked(self) -> list[_Found]:
        """The worst first."""
        return [one for _, _, one in sorted(self._heap, key=lambda item: item[:2], reverse=True)]


def _by_class(names: list[str], classes: ClassSet, judged: Survey) -> dict[str, dict[str, float]]:
    """Trust by domain and class, where it was judged."""
    return {
        name: {
            label: value
            for label, value, agreed in zip(classes.classes, values.tolist(), agreement.tolist(), strict=True)
            if not math.isnan(agreed)
        }
        for name, values, agreement in zip(names, judged.trust, judged.agreement, strict=True)
    }


def _meanings(names: list[str], classes: ClassSet, judged: Survey) -> dict[str, dict[str, dict[str, float]]]:
    """The classes that a label may stand for, with their likelihood, where it is not its own class alone."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, table in zip(names, judged.likelihood.tolist(), strict=True):
        for label, row in zip(classes.classes, table, strict=True):
            likely = {
                one: value for one, value in zip(classes.classes, row, strict=True) if value >= _MENTIONED
            }
            if likely.keys() != {label}:
                found.setdefault(name, {})[label] = likely
    return found


@dataclass(frozen=True)
class _Judge:
    """One domain's judge and what it needs to look at an image."""

    features: TowerFeatures
    classifier: LinearClassifier
    trust: Tensor  # (K,)
    domain: str
    config: Config
    classes: ClassSet

    def at(self, sample: EvalSample, device: torch.device | str) -> Iterator[_Found]:
        """The regions of an image whose label the judge finds less than half as probable as another."""
        size = (sample.image.shape[1], sample.image.shape[2])
        seen = self.features(sample.image.to(device)).cpu()
        grid = (seen.shape[1], seen.shape[2])
        truth = labels_of_cells(sample, grid, self.classes.num_classes, self.config.ppar.min_purity)
        logits = self.classifier.log_probabilities(seen.flatten(1).t())  # (N, K)
        labels = truth.flatten().clamp(max=self.classes.num_classes - 1)
        judged = (truth.flatten() < self.classes.num_classes) & self.classifier.biases.isfinite()[labels]
        agreed = torch.where(judged, reliability(logits, labels).exp(), 1.0)
        weights = (agreed * self.trust[labels]).view(grid)
        scale = sample.label.shape[0] / size[0], sample.label.shape[1] / size[1]
        for cells in _components((agreed < _DISTRUSTED).view(grid).numpy(), truth.numpy()):
            mask = cells_to_pixels(torch.from_numpy(cells)[None], size)[0].numpy()
            rows, columns = np.nonzero(mask)
            top, bottom = rows.min() * scale[0], (rows.max() + 1) * scale[0]
            left, right = columns.min() * scale[1], (columns.max() + 1) * scale[1]
            inside = torch.from_numpy(cells)
            judged_as = int(logits.view(*grid, -1)[inside].clamp_min(-1e3).mean(0).argmax())
            region = Region(
                domain=self.domain,
                key=sample.key,
                label=self.classes.classes[int(truth[inside][0])],
                judged_as=self.classes.classes[judged_as],
                trust=float(self.trust[labels.view(grid)[inside][0]]),
                weight=float(weights[inside].mean()),
                pixels=round(len(rows) * scale[0] * scale[1]),
                box=(round(left), round(top), round(right), round(bottom)),
            )
            yield _Found(region, sample, mask)


def _components(chosen: Mask, labels: npt.NDArray[Any]) -> Iterator[Mask]:
    """Masks (h, w) of chosen cells that touch by a side and share a label, ``_FEWEST`` or more each."""
    left = chosen.copy()
    for start in zip(*np.nonzero(chosen), strict=True):
        if not left[start]:
            continue
        mask = np.zeros_like(chosen)
        stack = [start]
        while stack:
            row, column = stack.pop()
            if not left[row, column]:
                continue
            left[row, column], mask[row, column] = False, True
            for y, x in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                inside = 0 <= y < chosen.shape[0] and 0 <= x < chosen.shape[1]
                if inside and left[y, x] and labels[y, x] == labels[start]:
                    stack.append((y, x))
        if mask.sum() >= _FEWEST:
            yield mask


def _write(result: Audit, found: list[_Found], classes: ClassSet) -> None:
    """Replace the folder's contents; the list comes last, so that a reader finds its pictures."""
    shutil.rmtree(result.folder, ignore_errors=True)
    result.folder.mkdir(parents=True)
    rows = []
    for number, one in enumerate(found):
        name = f"{number:03d}.png"
        write_picture(_picture(one, classes), result.folder / name)
        rows.append({**one.region.to_dict(), "picture": name})
    text = {"images": result.images, "trust": result.trust, "may_be": result.may_be, "regions": rows}
    write_atomically(result.folder / paths.REGIONS, json.dumps(text, indent=1) + "\n")


def _picture(one: _Found, classes: ClassSet) -> Image.Image:
    """The region outlined in its image, and beside it in its label map."""
    height, width = one.mask.shape
    label = palette_image(one.sample.label.numpy(), classes).resize((width, height), Image.Resampling.NEAREST)
    sides = [one.sample.image.permute(1, 2, 0).numpy(), np.asarray(label.convert("RGB"))]
    edge = _edge(one.mask)
    joined = np.concatenate([np.where(edge[..., None], _RED, side) for side in sides], 1)
    return Image.fromarray(joined.astype(np.uint8))


def _edge(mask: Mask, thickness: int = 2) -> Mask:
    """The rim of a region, ``thickness`` pixels to either side."""
    padded = torch.from_numpy(mask)[None, None].float()
    kernel = 2 * thickness + 1
    grown = functional.max_pool2d(padded, kernel, 1, thickness)
    shrunk = -functional.max_pool2d(-padded, kernel, 1, thickness)
    edge: Mask = (grown != shrunk)[0, 0].numpy()
    return edge
