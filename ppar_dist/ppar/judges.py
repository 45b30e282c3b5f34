"""Judges: for each domain a linear classifier of cells that learns from the other domains alone.

A domain cannot vouch for itself: a network learns the labelling habits of each of its sources and then
finds them reliable. Ours, not the paper's; see docs/method.md, "Cell weights".

Judges learn beside the network, from its detached features: their gradient is a sum over cells, which
the ranks share with everything else, and their step is taken where the sums are folded.

Letters: B images, M domains, K classes, W width of the decoder's features, (h, w) grid, N = h·w cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ppar_dist.ppar.cells import valid_cells

_RATE = 1e-2  # of Adam, on features of unit variance
_MOST = 10.0  # times its cells: what a rare domain counts in the others' judges
_EPSILON = 1e-4  # added to the root of Adam's second moment: the rounding of a sum over ranks moves nothing


class Judges:
    """M linear classifiers; that of domain m has never seen a label of m."""

    def __init__(self, domains: int, classes: int, width: int, device: torch.device | str = "cpu") -> None:
        """Classifiers that find all classes alike: M = ``domains``, K = ``classes``, W = ``width``."""
        self.weights = torch.zeros(domains, classes, width + 1, device=device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.weights], lr=_RATE, eps=_EPSILON, foreach=False)
        # cells per domain and class over the whole run: what the others have to judge by
        self.seen = torch.zeros(domains, classes, dtype=torch.float64, device=device)

    @torch.no_grad()
    def logits(
        self, features: Float[Tensor, "B W N"], domains: Int64[Tensor, " B"]
    ) -> Float[Tensor, "B K N"]:
        """What the judge of each image's domain says about its cells."""
        chosen = self.weights[domains]  # (B, K, W + 1)
        return torch.baddbmm(chosen[..., -1:], chosen[..., :-1], features)

    def shares(self) -> Float[Tensor, " M"]:
        """Factors on the cells of each domain by which all domains teach alike, whatever their size.

        A large source that is wrong would otherwise outvote the small ones that are right.
        """
        cells = self.seen.sum(1)
        mean = cells.sum() / (cells > 0).sum().clamp_min(1)
        return torch.where(cells > 0, mean / cells.clamp_min(1), 1.0).clamp_max(_MOST).float()

    def known(self) -> Bool[Tensor, "M K"]:
        """The classes that a domain other than m has."""
        return (self.seen.sum(0) - self.seen) > 0

    @torch.no_grad()
    def gradient(
        self,
        features: Float[Tensor, "B W N"],
        labels: Int64[Tensor, "B N"],
        domains: Int64[Tensor, " B"],
    ) -> tuple[Float[Tensor, "M K V"], Float[Tensor, "M K"]]:
        """Sums over cells of ∂ cross-entropy / ∂ weights (V = W + 1), and the cells by domain and class.

        The cells of a domain count by its factor of `shares`, and not by their weights: what a judge
        distrusts it would never learn, and a young one distrusts whole classes.

        Args:
            features: of the cells, as `features`.
            labels: 255 is ignored.
            domains: of the images; an image adds nothing to the judge of its own domain.
        """
        num_domains, num_classes, _ = self.weights.shape
        extended = torch.cat([features, torch.ones_like(features[:, :1])], 1)  # (B, W + 1, N)
        factors = valid_cells(labels) * self.shares()[domains].view(-1, 1)
        truth = F.one_hot(labels.clamp(max=num_classes), num_classes + 1)[..., :num_classes]
        truth = truth.transpose(1, 2).to(features.dtype)  # (B, K, N)
        counts = F.one_hot(domains, num_domains).t().double() @ truth.sum(2).double()  # (M, K)
        sums = torch.zeros_like(self.weights)
        for judge in range(num_domains):  # all at once would need M times the memory
            mine = (domains != judge).to(features.dtype).view(-1, 1) * factors  # (B, N)
            surprise = (self.weights[judge] @ extended).softmax(1) - truth  # (B, K, N)
            sums[judge] = torch.einsum("bkn,bvn->kv", surprise * mine.unsqueeze(1), extended)
        return sums, counts.float()

    def fold(self, sums: Float[Tensor, "M K V"], counts: Float[Tensor, "M K"]) -> None:
        """Take a step along the global batch's gradient: the sums over the number of cells, as they count."""
        cells = counts.sum(1) * self.shares()  # (M,)
        others = (cells.sum() - cells).clamp_min(1)
        self.weights.grad = sums / others.view(-1, 1, 1)
        self.optimizer.step()
        self.seen += counts

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, moments and counts, as copies."""
        moments = self.optimizer.state.get(self.weights, {})
        zeros = torch.zeros_like(self.weights.detach())
        return {
            "weights": self.weights.detach().clone(),
            "exp_avg": moments.get("exp_avg", zeros).clone(),
            "exp_avg_sq": moments.get("exp_avg_sq", zeros).clone(),
            "step": torch.as_tensor(moments.get("step", 0.0), dtype=torch.float32).clone(),
            "seen": self.seen.clone(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave, to continue bit for bit."""
        with torch.no_grad():
            self.weights.copy_(state["weights"])
            self.seen.copy_(state["seen"])
        own = self.optimizer.state[self.weights]
        own["step"] = state["step"].clone()
        for name in ("exp_avg", "exp_avg_sq"):
            own[name] = state[name].to(self.weights.device, copy=True)


def cell_features(embedding: Float[Tensor, "B W h w"]) -> Float[Tensor, "B W N"]:
    """The decoder's features of cells, of mean 0 and variance 1 over their channels, in float32."""
    flat = embedding.detach().float().flatten(2).transpose(1, 2)  # (B, N, W)
    return F.layer_norm(flat, flat.shape[-1:]).transpose(1, 2)


def reliability(
    logits: Float[Tensor, "B K N"], labels: Int64[Tensor, "B N"], known: Bool[Tensor, "B K"]
) -> tuple[Float[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """r = log p_y - max_k log p_k for a cell with label y; the largest over the classes that others have.

    Args:
        logits: of the judge of each image's domain.
        labels: 255 is ignored.
        known: the classes that another domain than the image's has.

    Returns:
        r in nats, at most 0, and 0 where nobody can judge; which cells are judged.
    """
    place = labels.clamp(max=logits.shape[1] - 1).unsqueeze(1)  # (B, 1, N)
    best = logits.masked_fill(~known.unsqueeze(-1), -torch.inf).amax(1)
    judged = valid_cells(labels) & known.unsqueeze(-1).expand_as(logits).gather(1, place)[:, 0]
    r = logits.gather(1, place)[:, 0] - best
    return torch.where(judged, r, torch.zeros_like(r)), judged
