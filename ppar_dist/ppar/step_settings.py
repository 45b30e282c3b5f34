"""What a step uses, frozen at its start: stage, loss weights, admission, statistics and prototypes.

Letters: K classes, D joint width. A reconstruction; see README, Method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from ppar_dist.ppar import alignment
from ppar_dist.ppar.reweighting import Moments


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What a step uses, equal on all ranks. The defaults are those of a step without the method."""

    stage: alignment.Stage
    text_weight: float = 0.0  # λ, 0 is off
    visual_weight: float = 0.0
    pixel_weight: float = 0.0
    quantile: float = math.nan  # of difficulty, up to which cells are admitted; nan outside the pixel stage
    threshold: float = math.nan  # the difficulty there; nan admits nothing
    needs_cosines: bool = False  # of cells to prototypes, for the pixel loss or its difficulty histogram
    moments: Moments = field(default_factory=Moments)
    reweight: bool = False
    text: Float[Tensor, "K D"] | None = None  # original text prototypes
    prototypes: Float[Tensor, "K D"] | None = None  # visual text prototypes
