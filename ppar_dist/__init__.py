"""PPAR: prototypical progressive alignment and reweighting for segmentation on unseen domains.

``load``, ``train`` and what they return are the Python interface (docs/python.md). They are imported when
they are first used: ``import ppar_dist`` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppar_dist.api.model import Model, load
    from ppar_dist.api.training import JobEnded, TrainedRun, train
    from ppar_dist.errors import UserError
    from ppar_dist.evaluation.results import Results

__version__ = "0.1.0"
__all__ = ["JobEnded", "Model", "Results", "TrainedRun", "UserError", "__version__", "load", "train"]

_PLACES = {
    "JobEnded": "api.training",
    "Model": "api.model",
    "Results": "evaluation.results",
    "TrainedRun": "api.training",
    "UserError": "errors",
    "load": "api.model",
    "train": "api.training",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
