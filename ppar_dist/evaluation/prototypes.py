"""The visual text prototypes of a run's last checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ppar_dist.checkpoint import METHOD, MODEL, list_checkpoints
from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.evaluation.load import classes_of
from ppar_dist.models.average import AVERAGE
from ppar_dist.models.text import text_prototypes
from ppar_dist.ppar.state import MethodState


def final_cosines(run: Path, config: Config) -> list[list[float]] | None:
    """Cosines (K, K) between the final visual text prototypes; None where they cannot be rebuilt."""
    found = list_checkpoints(run)
    if not found or not config.ppar.enabled:
        return None
    try:
        state = load_file(found[-1] / METHOD)
        text, domains = _text(config, found[-1]), len(config.data.sources)
        method = MethodState(config.ppar, text, domains, torch.device("cpu"))
        values = {k: v for k, v in state.items() if not k.startswith(("teacher.", AVERAGE))}
        if method.likelihood is not None:  # an earlier version has none, and prototypes do not use it
            values.setdefault("reweighting.likelihood", method.likelihood)
        method.load_state_dict(values)
    except (OSError, SafetensorError, UserError):
        return None  # a damaged checkpoint, or a text file that was moved
    prototypes = method.prototypes
    cosines: list[list[float]] = (prototypes @ prototypes.T).tolist()
    return cosines


def _text(config: Config, checkpoint: Path) -> Tensor:
    """The original text prototypes: from the model when it kept them, else from the configured file."""
    if config.model.classifier == "otp":
        return load_file(checkpoint / MODEL)["text"]
    return text_prototypes(config.text, classes_of(checkpoint, config), None)
