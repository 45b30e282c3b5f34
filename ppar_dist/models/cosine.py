"""Cosines between D-wide pixel embeddings and class vectors, without the D-wide embeddings.

With narrow features f and a projection P the embedding is Pf, and
cos(Pf, t) = f·(Pᵀt) / √(fᵀ(PᵀP)f): W×W and W×K products per pixel in the place of W×D and D×K.

Letters: B images, W width of the narrow features, D width of the joint space, K classes, (h, w) grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-6  # added to the squared length of an embedding


def cosine_logits(
    features: Float[Tensor, "B W h w"],
    projection: Float[Tensor, "D W"],
    classes: Float[Tensor, "K D"],
    scale: float,
) -> Float[Tensor, "B K h w"]:
    """scale · cos(Pf, t_k) for every pixel and class, always in fp32 (or fp64 for fp64 features).

    Args:
        features: f.
        projection: P.
        classes: t, rows of length 1.
        scale: factor of the cosines.

    Returns:
        Logits; all arguments receive gradients.
    """
    dtype = torch.promote_types(torch.float32, features.dtype)
    with torch.autocast(features.device.type, enabled=False):
        f, p, t = features.to(dtype), projection.to(dtype), classes.to(dtype)
        kernel = torch.cat([t @ p, p.T @ p])  # (K+W, W): one pass over f gives numerators and PᵀPf
        numerator, image = F.conv2d(f, kernel[:, :, None, None]).split([len(t), f.shape[1]], 1)
        squared = (f * image).sum(1, keepdim=True).clamp_min(0.0)  # rounding can leave it below zero
        result: Float[Tensor, "B K h w"] = scale * numerator * torch.rsqrt(squared + EPSILON)
        return result
