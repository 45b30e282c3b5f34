"""Losses as one value per sample, each a mean over the sample's own valid elements.

Letters: B images, K classes, (H, W) pixels, (h_1, w_1) the decoder's grid. Every function accepts
float64 (for gradient checks) and computes in float32 otherwise, whatever autocast says.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from ppar_dist.class_sets import IGNORE_INDEX


def full_precision(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``x`` in float32, or untouched where it is float64 already."""
    return x if x.dtype == torch.float64 else x.float()


def masked_mean(values: Float[Tensor, " B *rest"], mask: Bool[Tensor, " B *rest"]) -> Float[Tensor, " B"]:
    """Mean of ``values`` where ``mask`` holds, and 0 where it never does.

    The gradient at masked elements is exactly 0, so a sample with nothing valid adds nothing.
    """
    kept = torch.where(mask, values, values.new_zeros(()))
    return kept.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp_min(1)


def cross_entropy(
    logits: Float[Tensor, " B K *rest"],
    labels: Integer[Tensor, " B *rest"],
    likelihood: Float[Tensor, "B K K"] | None = None,
) -> Float[Tensor, " B *rest"]:
    """-log p(label) of each place, 0 where it is ignored.

    A label that may stand for several classes is as probable as all of them together: p(label y) is
    Σ_j A_yj p_j (Patrini et al., "Making deep neural networks robust to label noise: a loss correction
    approach", 2017, forward correction).

    Args:
        logits: of the classes.
        labels: class ids of any integer type; 255 is ignored.
        likelihood: A of each image: how likely label y is where the class is j, beside the class for
            which it is likeliest; None: every label is its class.

    Returns:
        Nats.
    """
    labels = labels.long()
    if likelihood is None:
        return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
    known = labels != IGNORE_INDEX
    places = labels.masked_fill(~known, 0).flatten(1).unsqueeze(1)  # (B, 1, N)
    of_label = likelihood.log().to(logits.dtype).transpose(1, 2)  # (B, K, K): class j, label y
    rows = of_label.gather(2, places.expand(-1, logits.shape[1], -1)).view_as(logits)  # log A_yj
    nats = logits.logsumexp(1) - (logits + rows).logsumexp(1)
    return nats.masked_fill(~known, 0.0)


def segmentation_loss(
    logits: Float[Tensor, "B K h_1 w_1"],
    labels: Integer[Tensor, "B H W"],
    likelihood: Float[Tensor, "B K K"] | None = None,
) -> Float[Tensor, " B"]:
    """Cross-entropy per image: mean over its own valid pixels, 0 for an image without any.

    Args:
        logits: upsampled bilinearly (align_corners=False) to the labels' size.
        labels: class ids of any integer type; 255 is ignored.
        likelihood: as in `cross_entropy`.

    Returns:
        Nats.
    """
    with torch.autocast(logits.device.type, enabled=False):
        full = F.interpolate(
            full_precision(logits), size=labels.shape[-2:], mode="bilinear", align_corners=False
        )  # (B, K, H, W)
        return masked_mean(cross_entropy(full, labels, likelihood), labels != IGNORE_INDEX)
