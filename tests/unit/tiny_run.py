"""A run small enough for unit tests: synthetic domains, a few-thousand-parameter model, one checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from ppar_dist import checkpoint
from ppar_dist.class_sets import class_set
from ppar_dist.config.load import dump_config, parse_config
from ppar_dist.config.schema import Config
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.writer import write_domain
from ppar_dist.models.segmentor import build_segmentor
from ppar_dist.ppar.state import MethodState
from tests.bucket import in_bucket
from tests.ranks import encode

WIDTH = 8  # of the joint space
CLASSES = class_set("roads6")


def make_domain(folder: Path, samples: int, seed: int = 0, classes: str = "roads6") -> DomainIndex:
    """Noise images of several sizes under random labels, some of them ignored."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(samples):
        height, width = 24 + 4 * (i % 3), 36
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        label = rng.integers(0, 5, (height, width), dtype=np.uint8)  # class 5 (car) never occurs
        label[:3] = 255
        rows.append((f"s{i:03d}", encode(image, "JPEG"), encode(label, "PNG"), {}))
    return write_domain(folder, classes, rows)


def make_config(root: Path, run: Path, classifier: str = "otp", **changes: object) -> Config:
    """The configuration of a tiny run; the file of text embeddings it names need not exist."""
    tree = {
        "run": {"dir": str(run), "name": "tiny"},
        "data": {"root": str(root), "classes": "roads6", "sources": ["a", "b"], "size": 16, "crop": [16, 24]},
        "model": {
            "backbone": {
                "kind": "timm",
                "name": "convnext_atto",
                "embed_dim": WIDTH,
                "options": {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8]},
            },
            "decoder": {"width": 8},
            "classifier": classifier,
        },
        "text": {"file": str(root / "gone.npz")},
        "train": {"steps": 40, "global_batch": 4},
        **changes,
    }
    return parse_config(in_bucket(tree, run))


def make_run(root: Path, run: Path, steps: tuple[int, ...] = (40,), **options: object) -> Config:
    """Domains a and b, a configuration, and a checkpoint per step with random weights."""
    for seed, name in enumerate("ab"):
        if not (root / name).exists():
            make_domain(root / name, 5, seed)
    config = make_config(root, run, **options)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    for step in steps:
        publish(config, step)
    return config


def publish(config: Config, step: int) -> Path:
    torch.manual_seed(step)
    segmentor, _ = build_segmentor(config, CLASSES, load_weights=False)
    text = torch.nn.functional.normalize(torch.randn(CLASSES.num_classes, WIDTH), dim=1)
    if segmentor.text is not None:
        segmentor.text.copy_(text)
    method = MethodState(config.ppar, text, len(config.data.sources), torch.device("cpu"))
    method.bank.sums.normal_()
    method.bank.counts.fill_(5)
    method.bank.cells_total.fill_(5000)

    tensors = {"model.safetensors": segmentor.state_dict(), "ppar.safetensors": method.state_dict()}
    texts = {"state.json": json.dumps({"step": step, "best_step": 20})}
    return checkpoint.publish(config.run.dir, checkpoint.Snapshot(step, tensors, texts, {"world_size": 1}))
