"""Segmentation metrics from one integer confusion matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from ppar_dist.class_sets import IGNORE_INDEX

_BYTE = 256


def class_iou(counts: Tensor) -> Tensor:
    """(K,) float64 intersection over union from counts (K, K), rows are labels.

    A class neither labelled nor predicted is nan; one predicted where it never occurs is 0.
    """
    hits = counts.diagonal().double()
    return hits / (counts.sum(0) + counts.sum(1) - counts.diagonal())  # 0 / 0 is nan


def mean_iou(counts: Tensor) -> float:
    """Mean of `class_iou` over the classes that occur; nan when none does."""
    return float(class_iou(counts).nanmean())


class ConfusionMatrix:
    """Counts of (label, prediction) pairs over any number of images.

    ``counts`` is (K, K) int64 on the CPU, rows are labels and columns are predictions. Counts of several
    workers are added (`merge`), and only then divided. They stay on the device of the maps until they are
    asked for: the host does not wait for a GPU at each image.
    """

    def __init__(self, num_classes: int) -> None:
        """Start from zero for K = ``num_classes`` classes."""
        self.num_classes = num_classes
        # Of all pairs of bytes: what is ignored or illegal is counted too, and found when it is read.
        self._pairs = torch.zeros(_BYTE * _BYTE, dtype=torch.int64)

    @classmethod
    def of(cls, counts: Tensor) -> ConfusionMatrix:
        """The matrix of these (K, K) counts."""
        matrix = cls(len(counts))
        matrix._pairs.view(_BYTE, _BYTE)[: len(counts), : len(counts)] = counts
        return matrix

    @property
    def counts(self) -> Tensor:
        """(K, K) int64.

        Raises:
            ValueError: maps on a GPU held a class id outside 0..K-1.
        """
        self._pairs = self._pairs.cpu()
        return self._legal(self._pairs).clone()

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Add the pixels of two integer maps of one shape, on one device; label 255 is ignored.

        Raises:
            ValueError: the shapes differ, or a class id is outside 0..K-1; of byte maps on a GPU ``counts``
                tells the latter.
        """
        if prediction.shape != label.shape:
            raise ValueError(
                f"prediction and label have one shape, got {tuple(prediction.shape)} and "
                f"{tuple(label.shape)}; resize the logits to the label first"
            )
        if prediction.dtype == label.dtype == torch.uint8:
            truth, guess = label.flatten(), prediction.flatten()
        else:
            truth, guess = self._as_bytes(label[label != IGNORE_INDEX], prediction[label != IGNORE_INDEX])
        pairs = truth.int() * _BYTE + guess
        if pairs.is_cuda:  # where bincount would wait for the largest value
            counted = torch.zeros_like(self._pairs, device=pairs.device)
            counted.scatter_add_(0, pairs.long(), torch.ones_like(pairs, dtype=torch.int64))
        else:
            counted = torch.bincount(pairs, minlength=len(self._pairs))
            self._legal(counted)
        self._pairs = self._pairs.to(counted.device) + counted

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix over the same classes."""
        if other.num_classes != self.num_classes:
            raise ValueError(
                f"only matrices of one class set merge, got {self.num_classes} and {other.num_classes} "
                "classes; evaluate both with the same class set"
            )
        self._pairs = self._pairs + other._pairs.to(self._pairs.device)

    def _legal(self, pairs: Tensor) -> Tensor:
        """The (K, K) counts of ids that a map may hold; raises ValueError where there are others."""
        labelled = pairs.view(_BYTE, _BYTE)[:IGNORE_INDEX]
        self._check("label", labelled.sum(1).nonzero())
        self._check("prediction", labelled.sum(0).nonzero())
        return labelled[: self.num_classes, : self.num_classes]

    def _as_bytes(self, truth: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
        """Ids of another type as bytes, once none of them is too large for one."""
        self._check("label", truth)
        self._check("prediction", guess)
        return truth.to(torch.uint8), guess.to(torch.uint8)

    def _check(self, name: str, ids: Tensor) -> None:
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_classes:
            raise ValueError(
                f"{name} ids are in 0..{self.num_classes - 1} or are {IGNORE_INDEX}, got "
                f"{int(ids.min())}..{int(ids.max())}; check the class set"
            )

    def iou(self) -> Tensor:
        """(K,) float64 intersection over union; nan for a class neither labelled nor predicted."""
        return class_iou(self.counts)

    def miou(self) -> float:
        """Mean of `iou` over the classes that occur; nan when none does."""
        return mean_iou(self.counts)

    def accuracy(self) -> float:
        """Share of labelled pixels predicted right; nan without any."""
        counts = self.counts
        return float(counts.diagonal().sum().double() / counts.sum())
