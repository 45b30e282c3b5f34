"""The converter of ImageNet weights: tensors keep their values and get the model's names."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gain.imagenet_weights import renamed


def test_tensors_are_renamed_by_their_place() -> None:
    theirs = {"_stem.weight": torch.ones(2, 3).t(), "_bn.bias": torch.zeros(3)}
    ours = {"stem.weight": torch.empty(3, 2), "bn.bias": torch.empty(3)}
    found = renamed(theirs, ours)
    assert list(found) == list(ours)
    assert torch.equal(found["stem.weight"], theirs["_stem.weight"])
    assert all(tensor.is_contiguous() for tensor in found.values())


@pytest.mark.parametrize(
    "like",
    [
        {"a.weight": torch.empty(2)},
        {"a.weight": torch.empty(2), "b.bias": torch.empty(4)},
        {"a.weight": torch.empty(2), "b.weight": torch.empty(3)},
    ],
    ids=["number", "shape", "kind"],
)
def test_what_does_not_fit_is_refused(like: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="give the model's own file"):
        renamed({"_a.weight": torch.ones(2), "_b.bias": torch.ones(3)}, like)
