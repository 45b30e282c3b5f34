"""From a run or checkpoint on disk to a segmentor that is ready to predict."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ppar_dist.checkpoint import MODEL, opened
from ppar_dist.class_sets import ClassSet, class_set
from ppar_dist.config.load import load_config
from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.models.segmentor import Segmentor, build_segmentor
from ppar_dist.run import paths
from ppar_dist.text import one_line


def run_of(checkpoint: Path) -> Path:
    """The run folder a checkpoint folder belongs to (``<run>/checkpoints/step-…``)."""
    return checkpoint.resolve().parent.parent


def load_segmentor(
    path: Path, device: torch.device | str = "cpu", which: str = "latest"
) -> tuple[Segmentor, Config, ClassSet, Path]:
    """Build the segmentor of a run and load its weights; nothing is downloaded.

    Args:
        path: a run folder or one of its checkpoint folders.
        device: where the segmentor goes.
        which: for a run folder, ``latest`` or ``best`` (on held-out source data, never on a target).

    Returns:
        The segmentor in eval mode, the run's configuration, its class set and the checkpoint folder.

    Raises:
        UserError: the checkpoint or its configuration is missing or damaged, or the weights do not fit.
    """
    with opened(Path(path), which) as checkpoint:
        return *read_segmentor(checkpoint, device), checkpoint


def read_segmentor(
    checkpoint: Path, device: torch.device | str = "cpu"
) -> tuple[Segmentor, Config, ClassSet]:
    """As ``load_segmentor``, from a checkpoint folder that the caller has opened."""
    config = load_config(paths.config_file(run_of(checkpoint)))
    classes = class_set(config.data.classes)
    segmentor, _ = build_segmentor(config, classes, load_weights=False)
    _load_weights(segmentor, checkpoint)
    return segmentor.to(device).eval().requires_grad_(False), config, classes


def _load_weights(segmentor: Segmentor, checkpoint: Path) -> None:
    path = checkpoint / MODEL
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}; use another checkpoint of the run") from None
    try:
        segmentor.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{path} does not fit the model of the run's config.yaml: {one_line(error)}; "
            "restore that config.yaml"
        ) from None
