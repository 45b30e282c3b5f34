"""Runs of small random models of every kind: a checkpoint each, no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ppar_dist import checkpoint
from ppar_dist.class_sets import class_set
from ppar_dist.config.load import dump_config, parse_config
from ppar_dist.config.schema import Config
from ppar_dist.models.segmentor import build_segmentor
from tests.unit.models.tiny_clip import randomise

CLASSES = class_set("roads6")
ATTO = {
    "kind": "timm",
    "name": "convnext_atto",
    "embed_dim": 8,
    "options": {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8]},
}


def make_run(
    folder: Path, backbone: dict[str, Any], decoder: str = "fpn", size: int = 96, **changes: Any
) -> Config:
    """A run of random weights that needs no file: its tower is to be known to its library."""
    tree = {
        "run": {"dir": str(folder), "name": "tiny"},
        "data": {"root": str(folder), "classes": "roads6", "sources": ["a"], "size": size, "crop": [32, 32]},
        "model": {"backbone": backbone, "decoder": {"kind": decoder, "width": 8}, "classifier": "otp"},
        "text": {"file": str(folder / "gone.npz")},
        "train": {"steps": 4, "global_batch": 4},
        **changes,
    }
    config = parse_config(tree)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    segmentor, _ = build_segmentor(config, CLASSES, load_weights=False)
    randomise(segmentor, seed=3)
    if segmentor.text is not None:
        segmentor.text.copy_(torch.nn.functional.normalize(torch.randn_like(segmentor.text), dim=1))
    if segmentor.image_prototypes is not None:
        segmentor.image_prototypes.means.normal_()
        segmentor.image_prototypes.precision.copy_(0.1 * torch.eye(segmentor.image_prototypes.means.shape[1]))
        segmentor.image_prototypes.shares.fill_(0.5)
    tensors = {name: value.contiguous() for name, value in segmentor.state_dict().items()}
    texts = {"state.json": json.dumps({"step": 4, "best_step": 4})}
    facts = {"world_size": 2, "versions": {"ppar_dist": "0.0"}, "data": {}, "config_sha256": "ab" * 32}
    checkpoint.publish(folder, checkpoint.Snapshot(4, {"model.safetensors": tensors}, texts, facts))
    return config
