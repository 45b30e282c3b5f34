"""Tests run with the shapes checked that annotations name."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from ppar_dist.models.losses import masked_mean
from ppar_dist.ppar.alignment import Term
from ppar_dist.ppar.prototypes import PrototypeBank


def test_shapes_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(TypeCheckError, match="masked_mean"):
        masked_mean(torch.zeros(2, 3), torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(TypeCheckError, match="fold"):
        PrototypeBank(2, 3, 4, 0.9).fold(torch.zeros(2, 3, 4), torch.zeros(3, 2))
    with pytest.raises(TypeCheckError, match="present"):
        Term(1.0, torch.zeros(2), torch.zeros(2))
