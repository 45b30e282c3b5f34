"""Segmentation metrics from one integer confusion matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from ppar_dist.class_sets import IGNORE_INDEX


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

    ``counts`` is (K, K) int64, rows are labels and columns are predictions. Counts of several
    workers are added (`merge`), and only then divided.
    """

    def __init__(self, num_classes: int) -> None:
        """Start from zero for K = ``num_classes`` classes."""
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Add the pixels of two integer maps of one shape; label 255 is ignored.

        Raises:
            ValueError: the shapes differ, or a class id is outside 0..K-1.
        """
        if prediction.shape != label.shape:
            raise ValueError(
                f"prediction and label have one shape, got {tuple(prediction.shape)} and "
                f"{tuple(label.shape)}; resize the logits to the label first"
            )
        valid = label != IGNORE_INDEX
        truth, guess = label[valid].long(), prediction[valid].long()
        for name, ids in (("label", truth), ("prediction", guess)):
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_classes:
                raise ValueError(
                    f"{name} ids are in 0..{self.num_classes - 1} or are {IGNORE_INDEX}, got "
                    f"{int(ids.min())}..{int(ids.max())}; check the class set"
                )
        pairs = torch.bincount(truth * self.num_classes + guess, minlength=self.num_classes**2)
        self.counts += pairs.view(self.num_classes, self.num_classes).cpu()

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix over the same classes."""
        if other.num_classes != self.num_classes:
            raise ValueError(
                f"only matrices of one class set merge, got {self.num_classes} and {other.num_classes} "
                "classes; evaluate both with the same class set"
            )
        self.counts += other.counts

    def iou(self) -> Tensor:
        """(K,) float64 intersection over union; nan for a class neither labelled nor predicted."""
        return class_iou(self.counts)

    def miou(self) -> float:
        """Mean of `iou` over the classes that occur; nan when none does."""
        return mean_iou(self.counts)

    def accuracy(self) -> float:
        """Share of labelled pixels predicted right; nan without any."""
        return float(self.counts.diagonal().sum().double() / self.counts.sum())
