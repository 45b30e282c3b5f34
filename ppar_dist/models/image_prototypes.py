"""Prototypes of the image that is predicted: logits corrected by what is sure in it.

Another camera or weather moves the features of a class; what the prediction is sure of in an image shows
where to. Each class is a Gaussian around the sources' prototype, all with one covariance S. For an image

    q_nk = p_nk where p_nk > 0.9, else 0        s_k = mean_n q_nk        m_k = Σ_n q_nk f_n / Σ_n q_nk
    v_k = μ_k + α_k (m_k − μ_k)                       α_k = α s_k / (s_k + 0.03)

with p the softmax of the logits, f the features, μ the sources' prototypes, and the logits grow by
log N(f; v_k, S) − log N(f; μ_k, S). α is small, and nearly the same for all classes that cover a tenth of the
image or more: one that covers much must not win for that alone. Images are independent of each other.

Letters: B images, K classes, V width of the features, (h, w) grid of the logits, N = h·w.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppar_dist.errors import UserError

FARTHEST = 0.07  # α of ``refit.share`` 1
_SURE = 0.9  # probability above which a cell speaks for its class
_HALF = 0.03  # share of the image at which a class has half of its α


class ImagePrototypes(nn.Module):
    """The correction of a prediction's logits; none before prototypes were fitted."""

    means: Tensor
    precision: Tensor
    shares: Tensor

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(num_classes, width))  # μ
        self.register_buffer("precision", torch.zeros(width, width))  # S⁻¹
        self.register_buffer("shares", torch.zeros(num_classes))  # α; 0 for a class without prototype

    @torch.no_grad()
    def forget(self) -> None:
        """Correct nothing, as before prototypes were fitted."""
        for buffer in self.buffers():
            buffer.zero_()

    def forward(
        self, logits: Float[Tensor, "B K h w"], features: Float[Tensor, "B V h w"]
    ) -> Float[Tensor, "B K h w"]:
        """The logits, corrected; always in fp32."""
        with torch.autocast(logits.device.type, enabled=False):
            logits, centre = logits.float(), self.means.mean(0)
            means = self.means - centre  # numbers near 0 lose fewer digits
            seen = features.float().flatten(2).transpose(1, 2) - centre  # (B, N, V)
            probable = logits.flatten(2).softmax(1)  # (B, K, N)
            sure = probable * (probable > _SURE)
            covered = sure.mean(2)  # (B, K)
            own = sure @ seen / sure.sum(2, keepdim=True).clamp_min(1e-6)  # (B, K, V)
            alpha = self.shares * covered / (covered + _HALF)
            moved = alpha.unsqueeze(2) * (own - means)
            towards = moved @ self.precision
            # log N(f; μ + d) − log N(f; μ) = (f − μ − d/2)ᵀ S⁻¹ d
            gain = towards @ seen.transpose(1, 2) - ((means + moved / 2) * towards).sum(2, keepdim=True)
            return logits + gain.view_as(logits)


def refuse_former(weights: Container[str], checkpoint: Path) -> None:
    """Refuse weights with prototypes of an earlier form of ``refit.prototypes``.

    Raises:
        UserError: they are among the names in ``weights``.
    """
    if "prototype_weights" in weights:
        raise UserError(
            f"{checkpoint} was trained with an earlier form of refit.prototypes, which this version does not "
            "have; train it again"
        )
