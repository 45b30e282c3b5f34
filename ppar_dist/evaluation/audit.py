"""The most distrusted regions of a run's sources: where to look for faults of labelling.

::

    <run>/audit/
      regions.json      mean weights by domain and class, and the regions, each with
                        domain, key, class, judged_as, weight, pixels, box, picture
      000.png           a region outlined in its image and in its label map

Weights are those of ``ppar.cell_weights``, of untouched images at ``data.size``.
Letters: K classes, W width of the decoder's features, (h, w) grid of cells, (H, W) pixels of the image seen.
"""

from __future__ import annotations

import heapq
import json
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
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from ppar_dist.checkpoint import METHOD, opened, write_atomically
from ppar_dist.class_sets import ClassSet
from ppar_dist.config.schema import Config
from ppar_dist.data.reading import EvalSample, eval_samples
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.errors import UserError
from ppar_dist.evaluation.evaluate import LeftOut
from ppar_dist.evaluation.load import read_segmentor
from ppar_dist.evaluation.palette_images import palette_image
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.ppar.cell_weights import by_class, raw_weights
from ppar_dist.ppar.cells import cell_labels, cells_to_pixels
from ppar_dist.ppar.judges import Judges, cell_features, reliability
from ppar_dist.run import paths

_DISTRUSTED = 0.5  # weight below which a cell belongs to a region
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
    weight: float  # mean over its cells
    pixels: int  # of the stored label map, about
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels of the stored label map

    @property
    def loss(self) -> float:
        """Pixels that the weights take away: what ranks regions."""
        return self.pixels * (1.0 - self.weight)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in ``regions.json``."""
        values = asdict(self)
        values["class"] = values.pop("label")
        return values


@dataclass(frozen=True)
class Audit:
    """What was found."""

    checkpoint: str
    images: dict[str, int]  # looked at, by domain
    weights: dict[str, dict[str, float]]  # mean by domain and class, where cells were judged
    regions: list[Region]  # the most distrusted first
    folder: Path

    @property
    def list(self) -> Path:
        """The JSON file."""
        return self.folder / paths.REGIONS

    def table(self) -> str:
        """Mean weight by domain and class as plain text columns."""
        names = sorted({name for row in self.weights.values() for name in row})
        rows = [["domain", "images", *names]]
        for domain, row in self.weights.items():
            cells = (f"{row[name]:.2f}" if name in row else "-" for name in names)
            rows.append([domain, str(self.images[domain]), *cells])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = (
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            )
            for row in rows
        )
        return "\n".join(lines)


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
    which: str = "latest",
    progress: Callable[[str, int, int], None] | None = None,
) -> Audit:
    """Judge the labels of a run's sources, and write the most distrusted regions into its folder.

    Args:
        run: a run folder.
        images: of each source, spread evenly; 0: all.
        most: regions to keep.
        device: where the model runs.
        which: ``latest`` or ``best`` (on held-out source data).
        progress: called with (domain, images done, images in all).

    Raises:
        UserError: the run has no judges, or its checkpoint or a source cannot be used.
    """
    run = Path(run)
    if not paths.config_file(run).exists():
        raise UserError(f"an audit is written into a run folder, and {run} has no config.yaml; give the run")
    with opened(run, which) as checkpoint:
        segmentor, config, classes = read_segmentor(checkpoint, device)
        judges = _judges(checkpoint, config, classes, device)
    totals = torch.zeros(len(config.data.sources), classes.num_classes, 2, dtype=torch.float64)
    found: list[tuple[float, int, _Found]] = []  # a heap: the least distrusted of those kept comes first
    order = count(0, -1)  # of equals the first ones stay
    looked = {}
    for number, source in enumerate(config.data.sources):
        index = DomainIndex.open(config.data.root / source.name, config.data.max_bad_ratio)
        chosen, left_out = _spread(len(index), images), LeftOut(source.name)
        for done, at in enumerate(chosen, start=1):
            for sample in eval_samples(index, at, at + 1, config.data.size, left_out):
                regions, sums = _look(segmentor, judges, number, source.name, sample, config, classes)
                totals[number] += sums
                for one in regions:
                    heapq.heappush(found, (one.region.loss, next(order), one))
                    if len(found) > most:
                        heapq.heappop(found)
            if progress is not None:
                progress(source.name, done, len(chosen))
        looked[source.name] = len(chosen) - left_out.count
    ranked = [one for _, _, one in sorted(found, key=lambda item: item[:2], reverse=True)]
    weights = {
        source.name: {
            name: total / cells
            for name, (total, cells) in zip(classes.classes, rows.tolist(), strict=True)
            if cells
        }
        for source, rows in zip(config.data.sources, totals, strict=True)
    }
    result = Audit(checkpoint.name, looked, weights, [one.region for one in ranked], paths.audit(run))
    _write(result, ranked, classes)
    return result


def _judges(checkpoint: Path, config: Config, classes: ClassSet, device: torch.device | str) -> Judges:
    cells = config.ppar.reweighting.cells
    if not (config.ppar.enabled and config.ppar.reweighting.enabled and cells.enabled):
        raise UserError(
            "an audit asks the judges of cells, and this run has none; train with "
            "ppar.reweighting.cells.enabled=true"
        )
    state = load_file(checkpoint / METHOD)
    judges = Judges(len(config.data.sources), classes.num_classes, config.model.decoder.width, device)
    judges.load_state_dict({name: state[f"judges.{name}"] for name in judges.state_dict()})
    return judges


def _spread(total: int, wanted: int) -> list[int]:
    """``wanted`` numbers spread evenly over ``total`` (all of them when there are fewer, or for 0)."""
    if not wanted or wanted >= total:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * wanted) for i in range(wanted)]


@torch.inference_mode()
def _look(
    segmentor: Segmentor,
    judges: Judges,
    number: int,
    domain: str,
    sample: EvalSample,
    config: Config,
    classes: ClassSet,
) -> tuple[list[_Found], Tensor]:
    """The distrusted regions of an image, and its sums of weights and cells by class (K, 2)."""
    device = judges.weights.device
    size = (sample.image.shape[1], sample.image.shape[2])
    embedding = segmentor(sample.image[None].to(device)).embedding  # (1, W, h, w)
    grid = (embedding.shape[2], embedding.shape[3])
    seen = functional.interpolate(sample.label[None, None].float(), size=size, mode="nearest")
    truth = cell_labels(seen[0].to(torch.uint8), grid, classes.num_classes, config.ppar.min_purity)
    labels = truth.flatten(1).to(device)
    logits = judges.logits(cell_features(embedding), torch.tensor([number], device=device))
    r, judged = reliability(logits, labels, judges.known()[number][None])
    weights = raw_weights(r, config.ppar.reweighting.cells) * judged
    sums = by_class(weights, labels.masked_fill(~judged, classes.num_classes), classes.num_classes)[0]
    known = judges.known()[number]
    guesses = logits[0].masked_fill(~known.unsqueeze(1), -torch.inf).view(-1, *grid).cpu()
    distrusted = (judged & (weights < _DISTRUSTED)).view(grid).cpu().numpy()
    maps = truth[0].numpy(), weights.view(grid).cpu().numpy()
    scale = sample.label.shape[0] / size[0], sample.label.shape[1] / size[1]
    found = []
    for cells in _components(distrusted, maps[0]):
        mask = cells_to_pixels(torch.from_numpy(cells)[None], size)[0].numpy()
        rows, columns = np.nonzero(mask)
        top, bottom = rows.min() * scale[0], (rows.max() + 1) * scale[0]
        left, right = columns.min() * scale[1], (columns.max() + 1) * scale[1]
        judged_as = int(guesses[:, torch.from_numpy(cells)].mean(1).argmax())
        region = Region(
            domain=domain,
            key=sample.key,
            label=classes.classes[int(maps[0][cells][0])],
            judged_as=classes.classes[judged_as],
            weight=float(maps[1][cells].mean()),
            pixels=round(len(rows) * scale[0] * scale[1]),
            box=(round(left), round(top), round(right), round(bottom)),
        )
        found.append(_Found(region, sample, mask))
    return found, sums.double().cpu()


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
        _picture(one, classes).save(result.folder / name)
        rows.append({**one.region.to_dict(), "picture": name})
    text = {
        "checkpoint": result.checkpoint,
        "images": result.images,
        "weights": result.weights,
        "regions": rows,
    }
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
