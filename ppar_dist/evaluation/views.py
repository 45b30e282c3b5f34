"""Labels of a batch under a protocol: seen whole or in windows, at several scales, mirrored too.

Letters: B images, K classes, (h, w) pixels seen by the model or cells of logits, (H, W) pixels of the labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppar_dist.evaluation.labelling import bilinear, labels_of, labels_of_mean, logits_of
from ppar_dist.evaluation.protocol import Protocol, Size, Slide


@torch.inference_mode()
def predict_batch(segmentor: nn.Module, images: Sequence[Tensor], size: Size, protocol: Protocol) -> Tensor:
    """Class ids of a batch.

    Of several views (scales, mirror images) the probabilities are averaged, at the size of the labels.

    Args:
        segmentor: returns a Prediction with ``logits`` (B, K, h, w).
        images: one tensor of uint8 (B, 3, h, w) for each scale, on the segmentor's device.
        size: (H, W) in pixels.
        protocol: says how they are seen.

    Returns:
        (B, H, W) uint8.
    """
    views = [view for each in images for view in _views(segmentor, each, protocol)]  # each (B, K, h, w)
    if len(views) == 1:
        return torch.stack([labels_of(logits, size) for logits in views[0]])
    return torch.stack([labels_of_mean(logits, size) for logits in zip(*views, strict=True)])


def _views(segmentor: nn.Module, images: Tensor, protocol: Protocol) -> list[Tensor]:
    seen = [_logits(segmentor, images, protocol.slide)]
    if protocol.flip:
        # Bilinear resizing and mirroring commute, so cells are mirrored where pixels would be.
        seen.append(_logits(segmentor, images.flip(3), protocol.slide).flip(3))
    return seen


def _logits(segmentor: nn.Module, images: Tensor, slide: Slide | None) -> Tensor:
    return logits_of(segmentor, images) if slide is None else slid(segmentor, images, slide)


def slid(segmentor: nn.Module, images: Tensor, slide: Slide) -> Tensor:
    """Logits (B, K, h, w) of images (B, 3, h, w), each pixel's the mean over the windows that see it.

    The last window of a row or column ends with the image: it overlaps the one before by more. An image
    smaller than a window is one.
    """
    height, width = images.shape[-2:]
    total, seen = torch.zeros(()), torch.zeros(height, width, device=images.device)
    for top in starts(height, slide.crop[0], slide.stride[0]):
        for left in starts(width, slide.crop[1], slide.stride[1]):
            place = (..., slice(top, top + slide.crop[0]), slice(left, left + slide.crop[1]))
            window = images[place]
            logits = bilinear(logits_of(segmentor, window), (window.shape[2], window.shape[3]))
            if not total.ndim:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[place] += logits
            seen[place] += 1
    return total.div_(seen)


def starts(extent: int, crop: int, stride: int) -> list[int]:
    """Where windows of ``crop`` pixels begin on an axis of ``extent`` pixels."""
    last = max(extent - crop, 0)
    return [*range(0, last, stride), last]
