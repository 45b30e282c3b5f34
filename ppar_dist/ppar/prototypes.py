"""The prototype bank and the visual text prototypes built from it.

Letters: M domains, K classes, D joint width. A reconstruction; see README, Method.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ppar_dist.ppar.cells import unit

_LEAST_TRUST = 1e-3  # a class that is distrusted everywhere keeps its direction


class PrototypeBank:
    """Moving sums and counts of unit cell features per domain and class.

    S̄ ← μ S̄ + (1-μ) S and n̄ ← μ n̄ + (1-μ) n over the global batches in which the class of the
    domain occurs; where it does not, both keep their value. The centroid S̄ / n̄ then weighs the
    cells of a batch equally and needs no correction for the zero start: it cancels.
    """

    def __init__(
        self, domains: int, classes: int, width: int, momentum: float, device: torch.device | str = "cpu"
    ) -> None:
        """An empty bank: M = ``domains``, K = ``classes``, D = ``width``."""
        self.momentum = momentum
        self.sums = torch.zeros(domains, classes, width, device=device)
        self.counts = torch.zeros(domains, classes, device=device)
        # float64: a cumulative float32 count stops growing at 2^24 cells
        self.cells_total = torch.zeros(domains, classes, dtype=torch.float64, device=device)

    def fold(self, sums: Float[Tensor, "M K D"], counts: Float[Tensor, "M K"]) -> None:
        """Add the global batch's sums and counts of unit cell features."""
        rate = (1.0 - self.momentum) * (counts > 0).to(self.counts.dtype)  # 0 keeps the value
        self.sums.lerp_(sums, rate.unsqueeze(-1))
        self.counts.lerp_(counts, rate)
        self.cells_total += counts

    def centroids(self) -> tuple[Float[Tensor, "M K D"], Bool[Tensor, "M K"]]:
        """Unit centroids, zero where nothing was seen, and what was seen."""
        return unit(self.sums), self.counts > 0  # S̄ / n̄ and S̄ have one direction

    def class_means(self, trust: Float[Tensor, "M K"] | None = None) -> Float[Tensor, "K D"]:
        """Mean of a class's unit centroids over the domains that have it, else 0.

        Domains weigh by the trust in their labels of the class, or equally.
        """
        centroids, seen = self.centroids()
        shares = seen.to(centroids.dtype)
        if trust is not None:
            shares = shares * trust.clamp_min(_LEAST_TRUST)
        return (centroids * shares.unsqueeze(-1)).sum(0) / shares.sum(0).clamp_min(_LEAST_TRUST).unsqueeze(-1)


def visual_text_prototypes(
    text: Float[Tensor, "K D"],
    means: Float[Tensor, "K D"],
    cells: Float[Tensor, " K"],
    alpha_max: float,
    count_0: float,
) -> Float[Tensor, "K D"]:
    """v_k = norm((1 - α_k) t_k + α_k norm(μ_k)) with α_k = α_max (1 - exp(-count_k / count_0)).

    The text prior leads where evidence is thin, vision where it is rich; an unseen class has
    α_k = 0 and keeps its text prototype.

    Args:
        text: unit rows.
        means: class means of the bank, of any length.
        cells: how many were seen of each class, over all domains.
        alpha_max: largest share of vision, 0 to 1.
        count_0: cells after which 63 % of it is reached.

    Returns:
        Unit rows in the dtype of ``text``.
    """
    share = alpha_max * -torch.expm1(-cells.double() / count_0)  # (K,)
    alpha = share.to(text.dtype).unsqueeze(-1)
    return unit((1.0 - alpha) * text + alpha * unit(means))
