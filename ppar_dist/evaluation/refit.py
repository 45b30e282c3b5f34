"""The last stage of a run: the classifier fitted again, and prototypes for the prediction.

Training sees crops at random scales and in changed colours; a prediction sees whole images as they are. The
classifier that training leaves is not the best for those (Touvron et al., "Fixing the train-test resolution
discrepancy", 2019, who train the last layers again at the size of the test). What is fitted here has one
best solution, so nothing depends on a learning rate.

Letters: M domains, K classes, W decoder width, C channels of a level, D = W + C, N cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ppar_dist.config.schema import Config
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.evaluation.survey import source_cells
from ppar_dist.models.image_prototypes import FARTHEST
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.ppar.gaussian import Moments, pooled_moments, shrink
from ppar_dist.ppar.trust import Cells

_MOST_CELLS = 60_000  # of all sources
_SHRINKAGE = 0.05
_NO_VARIANCE = 1e-8  # below it features do not vary at all; its inverse is far from fp32's largest number
_LEAST_VARIANCE = 1e-3  # of a feature, as a share of the mean over features
_DECAY = 1e-3  # on squared weights of standardised features
_ITERATIONS = 60


def refit(
    segmentor: Segmentor,
    config: Config,
    indexes: Sequence[DomainIndex],
    trust: Float[Tensor, "M K"] | None,
    device: torch.device | str = "cpu",
    alive: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """What `Segmentor.load_refit` takes: classifiers fitted to the sources' images as they are.

    Args:
        segmentor: trained.
        config: of the run; ``refit`` says what is fitted.
        indexes: of the sources, in their order.
        trust: in the labels of each source and class, by which cells count; None: all alike.
        device: of the segmentor.
        alive: called after every image, for a watchdog.
    """
    num_classes, options = segmentor.num_classes, config.refit
    most = max(1, _MOST_CELLS // (len(indexes) * num_classes))
    was_training = segmentor.training
    segmentor.eval()
    domains = source_cells(
        segmentor.pixel_features, config, indexes, num_classes, options.images, most, device, alive
    )
    segmentor.train(was_training)
    votes = torch.ones(len(domains), num_classes) if trust is None else trust.cpu()
    found = {}
    if options.linear:
        found["linear.weight"], found["linear.bias"] = _logistic(domains, votes, segmentor.width)
    if options.prototypes:
        moments = [Moments.of(cells.features, cells.labels, num_classes) for cells in domains]
        there = torch.stack([each.counts > 0 for each in moments])
        pooled = pooled_moments(moments, votes.double() * there)
        assert segmentor.image_prototypes is not None
        segmentor.image_prototypes.forget()
        if not pooled.known.any():
            return found  # no labelled cell: a prediction stays as it is
        found["image_prototypes.means"] = pooled.means.float()
        found["image_prototypes.precision"] = torch.linalg.inv(_never_flat(pooled.covariance)).float()
        found["image_prototypes.shares"] = options.share * FARTHEST * pooled.known.float()
    return found


def _never_flat(covariance: Float[Tensor, "D D"]) -> Float[Tensor, "D D"]:
    """Shrunk, and with a floor under variances.

    A feature that the sources hardly ever move must not decide where a target does.
    """
    shrunk = shrink(covariance, _SHRINKAGE)
    floor = _LEAST_VARIANCE * float(shrunk.diagonal().mean())
    shrunk.diagonal().clamp_(min=max(floor, _NO_VARIANCE))
    return shrunk


def _logistic(domains: Iterable[Cells], votes: Float[Tensor, "M K"], width: int) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression on the decoder's features; all domains count alike.

    Returns:
        (K, W) weights and (K,) biases, for features that are not standardised.
    """
    features, labels, weights = [], [], []
    for cells, vote in zip(domains, votes, strict=True):
        features.append(cells.features[:, :width])
        labels.append(cells.labels)
        weights.append(vote[cells.labels].float() / max(1, len(cells.labels)))
    x, y, w = torch.cat(features), torch.cat(labels), torch.cat(weights)
    w = w / w.sum()
    mean = w @ x
    scale = (w @ (x - mean).square()).sqrt().clamp_min(1e-6)
    x = (x - mean) / scale
    linear = torch.nn.Linear(width, votes.shape[1])
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    solver = torch.optim.LBFGS(linear.parameters(), max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = w @ F.cross_entropy(linear(x), y, reduction="none") + _DECAY * linear.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[no-untyped-call]
    fitted = linear.weight.detach() / scale
    return fitted, linear.bias.detach() - fitted @ mean
