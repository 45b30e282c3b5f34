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


def segmentation_loss(
    logits: Float[Tensor, "B K h_1 w_1"],
    labels: Integer[Tensor, "B H W"],
    weights: Float[Tensor, "B H W"] | None = None,
) -> Float[Tensor, " B"]:
    """Cross-entropy per image: mean over its own valid pixels, 0 for an image without any.

    Args:
        logits: upsampled bilinearly (align_corners=False) to the labels' size.
        labels: class ids of any integer type; 255 is ignored.
        weights: factors on the pixels' cross-entropies, which do not enter the number of pixels.

    Returns:
        Nats.
    """
    with torch.autocast(logits.device.type, enabled=False):
        full = F.interpolate(
            full_precision(logits), size=labels.shape[-2:], mode="bilinear", align_corners=False
        )  # (B, K, H, W)
        pixels = F.cross_entropy(full, labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
        return masked_mean(pixels if weights is None else pixels * weights, labels != IGNORE_INDEX)
