"""How sure a model is of the label of each pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from ppar_dist.evaluation.labelling import bilinear

_TILE = 1 << 22  # upsampled logits of all classes at a time


@torch.inference_mode()
def confidence_of(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Probability of the label that ``labels_of`` gives, by softmax over the logits at each pixel.

    Args:
        logits: (K, h, w) float32.
        size: (height, width) in pixels.

    Returns:
        (height, width) float32 from 1/K to 1.
    """
    height, width = size
    wide = bilinear(logits[None].contiguous(), (logits.shape[1], width))  # (1, K, h, width)
    columns = max(1, _TILE // (len(logits) * height))
    parts = [
        bilinear(part, (height, part.shape[3]))[0].softmax(0).amax(0)
        for part in torch.split(wide, columns, dim=3)
    ]
    return torch.cat(parts, 1)
