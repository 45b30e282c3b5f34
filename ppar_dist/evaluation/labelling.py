"""From whole images to class ids of the wanted size, in memory that does not grow with the classes.

Letters: (H, W) pixels seen by the model, K classes, (h, w) cells of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

LONGEST = 4  # times its shorter side: what is longer goes through the model in windows
_GRID = 64  # pixels: windows, and the middles of their overlaps, begin on cells of the coarsest features
_TILE = 1 << 22  # upsampled logits of all classes at a time (16 MiB) …
_COLUMNS = 32  # … but at least so many columns: narrower ones take twice the time


@torch.inference_mode()
def predict_labels(segmentor: nn.Module, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Class ids of one whole image: ``labels_of`` of ``logits_of``.

    Args:
        segmentor: returns a Prediction with ``logits`` (1, K, h, w).
        image: (3, H, W) uint8 on the segmentor's device.
        size: (height, width) in pixels of the wanted label map.

    Returns:
        (height, width) uint8.
    """
    return labels_of(logits_of(segmentor, image[None])[0], size)


@torch.inference_mode()
def logits_of(segmentor: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, K, h, w) of images (B, 3, H, W) uint8 of one size.

    A panorama, longer than ``LONGEST`` times its shorter side, is seen in windows of that length that overlap
    by a shorter side: its memory is that of one window, and no object at a seam loses its surroundings.
    """
    short, long = sorted(images.shape[-2:])
    overlap = -(-short // _GRID) * _GRID
    length = LONGEST * overlap
    if long <= length:
        logits: Tensor = segmentor(images, dense=False).logits
        return logits.float()
    axis = 3 if images.shape[3] == long else 2
    return torch.cat(list(_windows(segmentor, images, axis, length, overlap)), axis)


def _windows(segmentor: nn.Module, images: Tensor, axis: int, length: int, overlap: int) -> Iterator[Tensor]:
    """Logits of one window after the other, each without the half of an overlap that a neighbour gives."""
    extent = images.shape[axis]
    stride = 0  # pixels of a cell, told by the first window, which is a whole one
    for start in range(0, extent - overlap, length - overlap):
        window = images.narrow(axis, start, min(length, extent - start))
        logits = segmentor(window, dense=False).logits.float()
        cells = logits.shape[axis]
        stride = stride or length // cells
        first = overlap // 2 // stride if start else 0
        end = cells if start + length >= extent else (length - overlap // 2) // stride
        yield logits.narrow(axis, first, end - first)


@torch.inference_mode()
def labels_of(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of the highest logit at each pixel, of several the first.

    That is ``interpolate(logits, size, mode="bilinear", align_corners=False).argmax`` without its K planes of
    that size: bilinear means first along the rows, then along the columns, and what is done to a column needs
    no other column. On a CPU it is the same bit for bit, but for large maps of logits that are stored
    channels last: torch rounds those in another order, which decides a pixel in a million.

    Args:
        logits: (K, h, w) float32.
        size: (height, width) in pixels.

    Returns:
        (height, width) uint8.
    """
    return _tiled([logits], size)


@torch.inference_mode()
def labels_of_mean(views: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """The class of the highest mean probability at each pixel, of several the first.

    Args:
        views: logits of one image, each (K, h, w) float32 of sizes of their own.
        size: (height, width) in pixels.

    Returns:
        (height, width) uint8.
    """
    return _tiled(views, size)


def _tiled(views: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """The labels of one view, or of several, a tile of columns after the other."""
    height, width = size
    columns = max(_COLUMNS, _TILE // (len(views[0]) * height))
    if columns >= width:
        return _highest(views, size)
    wide = [bilinear(view[None].contiguous(), (view.shape[1], width))[0] for view in views]  # (K, h, width)
    labels = torch.empty(size, dtype=torch.uint8, device=views[0].device)
    for left in range(0, width, columns):
        # The last begins early enough to be whole: torch rounds otherwise where an output is tiny.
        place = slice(min(left, width - columns), left + columns)
        labels[:, place] = _highest([view[..., place] for view in wide], (height, columns))
    return labels


def _highest(views: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    scores = bilinear(views[0][None], size)[0]
    if len(views) > 1:
        scores = scores.softmax(0)
        for view in views[1:]:
            scores += bilinear(view[None], size)[0].softmax(0)
    # On a CPU max gives the indices of argmax, of equal values the first too, in a fifth of its time.
    return scores.max(0).indices.to(torch.uint8)


def bilinear(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (B, K, h, w) at another size, pixel centres in their places."""
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
