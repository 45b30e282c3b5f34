"""The survey of a run's sources: features of labelled cells from the tower as it was loaded.

Letters: B images, D width of the features, (h, w) grid of cells, (H, W) pixels, N = h·w.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor
from torch.nn import functional

from ppar_dist.config.method_section import PparConfig
from ppar_dist.config.model_section import BackboneConfig
from ppar_dist.config.schema import Config
from ppar_dist.data.reading import EvalSample, eval_samples
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.sources import holdout_range
from ppar_dist.evaluation.counting import LeftOut
from ppar_dist.models.backbone import Backbone
from ppar_dist.models.resize import resize_bilinear
from ppar_dist.ppar.cells import cell_labels
from ppar_dist.ppar.trust import Cells, Survey, survey

RANDOM_TOWER = (  # what is wrong with it, and what to do
    "the tower's weights are random, so it sees colours and textures and distrusts labels that are right",
    "set model.backbone.pretrained or init_from, or ppar.reweighting.trust.enabled=false",
)
NOT_JUDGED = "no label could be judged, so each is trusted in full: a class needs three sources that show it"
NO_TRUST = (  # what a configuration that asks for trust does without
    "ppar.reweighting.enabled=false turns ppar.reweighting.trust off as well",
    "set ppar.reweighting.enabled=true and ppar.reweighting.beta=0 for trust without weights of samples, or "
    "ppar.reweighting.trust.enabled=false",
)
_STRIDE = 8  # pixels per cell, or the tower's finest stride above it
_WIDEST = 512  # features; of more, random projections, which keep distances
_MOST = 2000  # cells of a class of a domain
_SPARE = 8  # times its even share: what an image may give, for classes that few images have


def lacks_trust(ppar: PparConfig) -> bool:
    """Whether the configuration asks for trust and turns off what it belongs to."""
    return ppar.enabled and ppar.reweighting.trust.enabled and not ppar.reweighting.enabled


def is_random(backbone: BackboneConfig) -> bool:
    """Whether the library builds the tower with random weights, by which nothing can be judged."""
    loaded_by_options = backbone.options.get("pretrained") or backbone.options.get("checkpoint_path")
    return backbone.pretrained is None and ":" not in backbone.name and not loaded_by_options


class TowerFeatures:
    """Features of cells by the pretrained part of a backbone: its deepest map of each stride, on one grid."""

    def __init__(self, backbone: Backbone) -> None:
        """Look through ``backbone``, which must be as it was loaded."""
        self.backbone = backbone
        self._projection: Tensor | None = None

    @torch.inference_mode()
    def __call__(self, image: Shaped[Tensor, "3 H W"]) -> Float[Tensor, "D h w"]:
        """Features of one raw image; h = ceil(H / stride), w likewise."""
        prepared = self.backbone.prepare(image[None])
        maps = self.backbone.run_tower(prepared, False).pyramid
        levels = {(level.shape[2], level.shape[3]): level for level in maps}  # the deepest comes last
        coarse = [size for size in levels if size[0] * _STRIDE <= prepared.shape[2]]
        grid = max(coarse) if coarse else min(levels)
        joined = torch.cat([_resized(level.float(), grid) for level in levels.values()], 1)
        stride = prepared.shape[2] // grid[0]
        rows, columns = (-(-size // stride) for size in image.shape[1:])
        return self._narrowed(joined[0, :, :rows, :columns])

    def _narrowed(self, features: Tensor) -> Tensor:
        width = len(features)
        if width <= _WIDEST:
            return features
        if self._projection is None:
            random = torch.randn(_WIDEST, width, generator=torch.Generator().manual_seed(0))
            self._projection = (random / width**0.5).to(features.device)
        return torch.einsum("vd,dhw->vhw", self._projection, features)


def _resized(level: Tensor, grid: tuple[int, int]) -> Tensor:
    if level.shape[2] > grid[0]:
        return functional.adaptive_avg_pool2d(level, grid)
    return resize_bilinear(level, grid)


def evenly(total: int, wanted: int) -> list[int]:
    """``wanted`` numbers spread evenly over ``total`` (all of them when there are fewer, or for 0)."""
    if not wanted or wanted >= total:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * wanted) for i in range(wanted)]


def labels_of_cells(
    sample: EvalSample, grid: tuple[int, int], num_classes: int, min_purity: float
) -> Integer[Tensor, "h w"]:
    """Labels of the cells of an image as it is seen, 255 where no class covers enough of a cell."""
    size = (sample.image.shape[1], sample.image.shape[2])
    seen = functional.interpolate(sample.label[None, None].float(), size=size, mode="nearest")
    return cell_labels(seen[0].to(torch.uint8), grid, num_classes, min_purity)[0]


def source_cells(
    look: Callable[[Tensor], Tensor],
    config: Config,
    indexes: Iterable[DomainIndex],
    num_classes: int,
    images: int,
    most: int,
    device: torch.device | str,
    alive: Callable[[], None],
    purpose: str,
) -> list[Cells]:
    """Labelled cells of each source, from images as they are: without augmentation, at ``data.size``.

    Looks at the trained part of each source only. Samples that cannot be used are left out, and named in
    the log.

    Args:
        look: image (3, H, W) → features (D, h, w).
        config: of the run.
        indexes: of the sources, in their order.
        num_classes: K.
        images: of each source, spread evenly.
        most: cells of a class of a source, spread evenly.
        device: where ``look`` wants its images.
        alive: called after every image, for a watchdog.
        purpose: of the pass, for the log.
    """
    found, width = [], 1
    for source in indexes:
        index = copy.copy(source)  # its own open files: what training reads later does not depend on this
        parts, left_out = [], LeftOut(index.name, purpose)
        chosen = evenly(holdout_range(index, config.data.holdout).start, images)
        share = max(1, _SPARE * most // max(1, len(chosen)))  # of a source that has fewer images, more each
        for at in chosen:
            for sample in eval_samples(index, at, at + 1, config.data.size, left_out):
                seen = look(sample.image.to(device)).float().cpu()
                grid, width = (seen.shape[1], seen.shape[2]), seen.shape[0]
                truth = labels_of_cells(sample, grid, num_classes, config.ppar.min_purity).flatten()
                labelled = truth < num_classes
                cells = Cells(seen.flatten(1).t()[labelled], truth[labelled])
                parts.append(cells.thinned(num_classes, share))
            alive()
        found.append(parts)
    return [Cells.joined(parts, width, num_classes).thinned(num_classes, most) for parts in found]


def survey_sources(
    backbone: Backbone,
    config: Config,
    indexes: Iterable[DomainIndex],
    num_classes: int,
    device: torch.device | str = "cpu",
    alive: Callable[[], None] = lambda: None,
) -> Survey:
    """Let the sources judge each other's labels; see `ppar.trust`.

    Looks at ``ppar.reweighting.trust.images`` images of each source.

    Args:
        backbone: with its tower as it was loaded.
        config: of the run.
        indexes: of the sources, in their order.
        num_classes: K.
        device: of the backbone.
        alive: called after every image, for a watchdog.
    """
    trust, was_training = config.ppar.reweighting.trust, backbone.training
    look = TowerFeatures(backbone.eval())
    domains = source_cells(look, config, indexes, num_classes, trust.images, _MOST, device, alive, "survey")
    backbone.train(was_training)
    return survey(domains, num_classes, trust)
