"""The last stage of a run: the classifier fitted again, and prototypes for the prediction.

Training sees crops at random scales and in changed colours; a prediction sees whole images as they are. The
classifier that training leaves is not the best for those (Touvron et al., "Fixing the train-test resolution
discrepancy", 2019, who train the last layers again at the size of the test). What is fitted here has one
best solution, so nothing depends on a learning rate.

Letters: M domains, K classes, W decoder width, C channels of a level, D = W + C, N cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

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
_HALVINGS = 50  # of the range in which a bias lies


class Refit(NamedTuple):
    """What was fitted, for `Segmentor.load_refit`, and the classes that had no cell to fit them to."""

    values: dict[str, Tensor]
    unseen: tuple[int, ...]  # they keep what training left


def refit(
    segmentor: Segmentor,
    config: Config,
    indexes: Sequence[DomainIndex],
    trust: Float[Tensor, "M K"] | None,
    device: torch.device | str = "cpu",
    alive: Callable[[], None] = lambda: None,
) -> Refit:
    """Classifiers fitted to the sources' images as they are.

    A class that no trusted cell shows keeps its trained classifier and gets no prototype of the image;
    without any such cell nothing is fitted. Images that cannot be read are named in the log.

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
        segmentor.pixel_features, config, indexes, num_classes, options.images, most, device, alive, "refit"
    )
    segmentor.train(was_training)
    votes = torch.ones(len(domains), num_classes) if trust is None else trust.cpu()
    there = torch.stack([cells.labels.bincount(minlength=num_classes) > 0 for cells in domains])
    seen = (votes * there).sum(0) > 0
    unseen = tuple((~seen).nonzero().flatten().tolist())
    found: dict[str, Tensor] = {}
    if options.prototypes:
        assert segmentor.image_prototypes is not None
        segmentor.image_prototypes.forget()
    if not seen.any():
        return Refit(found, unseen)  # a prediction stays as it is
    if options.linear:
        assert segmentor.linear is not None
        assert segmentor.linear.bias is not None
        weights = segmentor.linear.weight.detach().float().cpu().flatten(1)
        biases = segmentor.linear.bias.detach().float().cpu()
        found["linear.weight"], found["linear.bias"] = _logistic(domains, votes, weights, biases)
    if options.prototypes:
        moments = [Moments.of(cells.features, cells.labels, num_classes) for cells in domains]
        pooled = pooled_moments(moments, votes.double() * there)
        found["image_prototypes.means"] = pooled.means.float()
        found["image_prototypes.precision"] = torch.linalg.inv(_never_flat(pooled.covariance)).float()
        found["image_prototypes.shares"] = options.share * FARTHEST * pooled.known.float()
    return Refit(found, unseen)


def _never_flat(covariance: Float[Tensor, "D D"]) -> Float[Tensor, "D D"]:
    """Shrunk, and with a floor under variances.

    A feature that the sources hardly ever move must not decide where a target does.
    """
    shrunk = shrink(covariance, _SHRINKAGE)
    floor = _LEAST_VARIANCE * float(shrunk.diagonal().mean())
    shrunk.diagonal().clamp_(min=max(floor, _NO_VARIANCE))
    return shrunk


def _logistic(
    domains: Sequence[Cells],
    votes: Float[Tensor, "M K"],
    weights: Float[Tensor, "K W"],
    biases: Float[Tensor, " K"],
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression on the decoder's features; all domains count alike.

    A class without a cell that counts keeps its trained weights; its bias moves so that the cells' mean
    probability of it, beside the fitted classes, is what it was.

    Args:
        domains: their first W features are the decoder's. Some cell counts.
        votes: of each domain and class.
        weights: as trained.
        biases: as trained.

    Returns:
        (K, W) weights and (K,) biases, for features that are not standardised.
    """
    width = weights.shape[1]
    x = torch.cat([cells.features[:, :width] for cells in domains])
    y = torch.cat([cells.labels for cells in domains])
    w = torch.cat(
        [
            vote[cells.labels].float() / max(1, len(cells.labels))
            for cells, vote in zip(domains, votes, strict=True)
        ]
    )
    seen = torch.zeros(len(weights), dtype=torch.bool)
    seen[y[w > 0]] = True
    x, y, w = x[seen[y]], (seen.cumsum(0) - 1)[y[seen[y]]], w[seen[y]]
    w = w / w.sum()
    mean = w @ x
    scale = (w @ (x - mean).square()).sqrt().clamp_min(1e-6)
    linear = torch.nn.Linear(width, int(seen.sum()))
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    solver = torch.optim.LBFGS(linear.parameters(), max_iter=_ITERATIONS, line_search_fn="strong_wolfe")
    standard = (x - mean) / scale

    def loss() -> Tensor:
        solver.zero_grad()
        found = F.cross_entropy(linear(standard), y, reduction="none")
        value = w @ found + _DECAY * linear.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[no-untyped-call]
    weight = linear.weight.detach() / scale
    bias = linear.bias.detach() - weight @ mean
    logits = x @ weights.t() + biases
    before = logits[:, ~seen] - logits[:, seen].logsumexp(1, keepdim=True)
    after = logits[:, ~seen] - (x @ weight.t() + bias).logsumexp(1, keepdim=True)
    weights, biases = weights.clone(), biases.clone()
    biases[~seen] += _shift(before, after, w)
    weights[seen], biases[seen] = weight, bias
    return weights, biases


def _shift(before: Float[Tensor, "N U"], after: Float[Tensor, "N U"], w: Float[Tensor, " N"]) -> Tensor:
    """What to add to ``after`` so that the mean of its sigmoid under ``w`` is that of ``before``: (U,)."""
    before, after, w = before.double(), after.double(), w.double()
    wanted, apart = w @ before.sigmoid(), before - after
    low, high = apart.amin(0), apart.amax(0)  # no cell finds it more probable, or less
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = w @ (after + middle).sigmoid() >= wanted
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return ((low + high) / 2).float()
