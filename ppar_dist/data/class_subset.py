"""Scores on a target that has only some of the model's classes.

The target's ids become the model's, by name. The model still chooses among all its classes: where a label is
one of the target's classes, a prediction of any other class is wrong. IoU is told for the target's classes,
and mIoU is their mean. Pixels of the target that are of none of its classes do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppar_dist.class_sets import IGNORE_INDEX, ClassSet
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.sources import check_classes, classes_option
from ppar_dist.errors import DataError

if TYPE_CHECKING:  # a plan is made before torch is loaded
    from torch import Tensor


@dataclass(frozen=True)
class ClassSubset:
    """The classes of a target among the K of a model.

    Args:
        kept: the model's id of each of the target's classes, in the target's order.
        num_classes: K.
        text: as tables show it; "" where the target has all classes.
    """

    kept: tuple[int, ...]
    num_classes: int
    text: str = ""

    def model_ids(self, labels: Tensor) -> Tensor:
        """uint8 labels with ids of the model instead of the target's; 255 stays, as no class."""
        if not self.text:
            return labels
        import torch

        table = torch.full((IGNORE_INDEX + 1,), IGNORE_INDEX, dtype=torch.uint8)
        table[: len(self.kept)] = torch.tensor(self.kept, dtype=torch.uint8)
        return table[labels.long()]

    def chosen(self, values: Tensor) -> Tensor:
        """Of (K,) values those of the target's classes, in the target's order."""
        return values[list(self.kept)]


def subset_of(index: DomainIndex, classes: ClassSet) -> ClassSubset:
    """Which of the model's classes a target has.

    Args:
        index: the target.
        classes: of the model.

    Raises:
        DataError: it has classes that the model has not, or all of them and is yet of another class set.
    """
    whole, part = len(classes.classes), len(index.classes)
    unknown = [name for name in index.classes if name not in classes.classes]
    if unknown and len(unknown) < part:
        raise DataError(
            f"domain {index.name} has class set {index.class_set}, and the model's, {classes.name}, lacks "
            f"{', '.join(unknown)}; prepare it with {classes_option(classes)}, or with a class set of some "
            "of those classes"
        )
    if unknown or part >= whole:
        check_classes(index, classes)
        return ClassSubset(tuple(range(whole)), whole)
    kept = tuple(classes.classes.index(name) for name in index.classes)
    return ClassSubset(kept, whole, f"{part} of {whole} classes ({index.class_set})")
