"""From a run or checkpoint on disk to a segmentor that is ready to predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ppar_dist.checkpoint import METHOD, checkpoints_dir, opened, read_manifest, read_model
from ppar_dist.class_sets import RECORD, ClassSet, read_record, recorded_class_set
from ppar_dist.config.load import load_config, parse_config
from ppar_dist.config.model_section import LoraConfig
from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.evaluation import model_folder
from ppar_dist.models.average import averaged_values
from ppar_dist.models.image_prototypes import refuse_former
from ppar_dist.models.segmentor import Segmentor, build_segmentor
from ppar_dist.run import paths
from ppar_dist.text import one_line


def run_of(checkpoint: Path) -> Path:
    """The run folder a checkpoint folder belongs to (``<run>/checkpoints/step-…``)."""
    return checkpoint.resolve().parent.parent


def default_device() -> str:
    """Where a model runs outside of training: the GPU, where torch sees one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_segmentor(
    path: Path, device: torch.device | str = "cpu", which: str = "latest", weights: str = "raw"
) -> tuple[Segmentor, Config, ClassSet, Path]:
    """Build the segmentor of a run and load its weights; nothing is downloaded.

    Args:
        path: a run folder or one of its checkpoint folders.
        device: where the segmentor goes.
        which: for a run folder, ``latest`` or ``best`` (on held-out source data, never on a target).
        weights: ``raw``, of the last step, or ``averaged``, their moving average.

    Returns:
        The segmentor in eval mode, the run's configuration, its class set and the checkpoint folder.

    Raises:
        UserError: the checkpoint or its configuration is missing or damaged, or the weights do not fit.
    """
    with opened(Path(path), which) as checkpoint:
        return *read_segmentor(checkpoint, device, weights), checkpoint


def read_segmentor(
    checkpoint: Path, device: torch.device | str = "cpu", weights: str = "raw"
) -> tuple[Segmentor, Config, ClassSet]:
    """As ``load_segmentor``, from a checkpoint folder that the caller has opened.

    Adapters are merged: the segmentor is as one trained without them.
    """
    config = config_of(checkpoint)
    classes = classes_of(checkpoint, config)
    values = _read_weights(checkpoint, weights)
    adapted = any(".lora_A." in name for name in values)
    segmentor, _ = build_segmentor(config if adapted else _plain(config), classes, load_weights=False)
    _load_weights(segmentor, values, checkpoint)
    if adapted:
        segmentor.backbone.remove_adapters(merge=True)
    # On a GPU as it was trained; on a CPU few have the instructions, and fp32 is the same or better.
    segmentor.bf16 = config.engine.precision == "bf16" and torch.device(device).type == "cuda"
    return segmentor.to(device).eval().requires_grad_(False), config, classes


def config_of(checkpoint: Path) -> Config:
    """The configuration of the run that a checkpoint is in; of one that was copied away, its own.

    A model folder always has its own.

    Raises:
        UserError: neither can be read.
    """
    if model_folder.is_model_folder(checkpoint):
        return model_folder.read_config(checkpoint)
    of_run = paths.config_file(run_of(checkpoint))
    if checkpoint.resolve().parent == checkpoints_dir(run_of(checkpoint)) and of_run.exists():
        return load_config(of_run)
    manifest = read_manifest(checkpoint)
    noted = manifest.get("whole_config") or _completed(manifest.get("config"), checkpoint)
    if noted is None:
        raise UserError(
            f"{checkpoint} does not hold its configuration; leave it in its run (RUN/checkpoints/STEP), "
            "beside the run's config.yaml"
        )
    return parse_config(noted, f"the configuration in {checkpoint}")


def classes_of(checkpoint: Path, config: Config) -> ClassSet:
    """The class set of a checkpoint, which it brings along; one of an earlier version has its run's.

    Raises:
        UserError: it cannot be read.
    """
    if model_folder.is_model_folder(checkpoint):
        return model_folder.read_classes(checkpoint)
    if (checkpoint / RECORD).is_file():
        return read_record(checkpoint / RECORD)
    return recorded_class_set(config.data.classes, run_of(checkpoint))


def _completed(noted: Any, checkpoint: Path) -> dict[str, Any] | None:
    """What earlier versions noted, with a value for each key that a segmentor does not depend on."""
    if not isinstance(noted, dict):
        return None
    place = str(checkpoint)  # no data and no text is read from there: the weights bring both
    missing = {"run": {"dir": place}, "data": noted.get("data", {}) | {"root": place}}
    return noted | missing | {"text": noted.get("text", {}) | {"file": place}}


def _plain(config: Config) -> Config:
    """The configuration for weights without adapters, as a model folder has them: it freezes nothing."""
    update = {"trainable": "all", "lora": LoraConfig(), "last_blocks": None, "frozen_dtype": "float32"}
    backbone = config.model.backbone.model_copy(update=update)
    return config.model_copy(update={"model": config.model.model_copy(update={"backbone": backbone})})


def _read_weights(checkpoint: Path, weights: str) -> dict[str, Tensor]:
    try:
        values = read_model(checkpoint)
        method = checkpoint / METHOD
        averaged = averaged_values(load_file(method)) if weights == "averaged" and method.exists() else {}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot read the model of {checkpoint}: {one_line(error)}; use another checkpoint of the run"
        ) from None
    if weights == "averaged" and not averaged:
        raise UserError(
            f"{checkpoint} holds no averaged weights: it was trained without train.weight_average; take "
            "--weights raw"
        )
    return values | averaged


def _load_weights(segmentor: Segmentor, weights: dict[str, Tensor], checkpoint: Path) -> None:
    refuse_former(weights, checkpoint)
    try:
        segmentor.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint} does not fit the model of the run's config.yaml: {one_line(error)}; "
            "restore that config.yaml"
        ) from None
