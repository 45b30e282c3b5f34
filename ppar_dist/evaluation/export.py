"""Export a checkpoint as one self-contained program (``torch.export``), checked against the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppar_dist.errors import UserError
from ppar_dist.evaluation.load import load_segmentor

# Kernels may be chosen differently in the exported program; labels must not change for that.
_TOLERANCE = 1e-3


class LogitsOnly(nn.Module):
    """A segmentor that takes 0..255 images and returns its class logits and nothing else."""

    def __init__(self, segmentor: nn.Module) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) uint8 → logits (B, K, H/4, W/4) float32."""
        logits: Tensor = self.segmentor(images, dense=False).logits
        return logits


@dataclass(frozen=True)
class Exported:
    """What was written: the file, the classes in logit order, and the largest deviation found."""

    file: Path
    checkpoint: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int, int]
    output_shape: tuple[int, ...]
    max_deviation: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self) | {"file": str(self.file)}

    def __str__(self) -> str:
        shape = "x".join(map(str, self.input_shape))
        return f"{self.file}: {self.checkpoint} for uint8 {shape}, logits within {self.max_deviation:.1e}"


def export(path: Path, out: Path, size: tuple[int, int] | None = None, which: str = "latest") -> Exported:
    """Write a ``.pt2`` program: uint8 images (1, 3, height, width) → logits (1, K, height/4, width/4).

    The file is loaded again and run on noise; it appears under its name only when its logits agree
    with the model's. Class names and the checkpoint travel inside as ``ppar_dist.json``.

    Args:
        path: a run folder or a checkpoint folder.
        out: the file to write, ending in ``.pt2``.
        size: (height, width) in pixels the program is fixed to; None: the run's training crop.
        which: ``latest`` or ``best``, for a run folder.

    Raises:
        UserError: ``out`` does not end in .pt2 or its folder is missing, or the checkpoint is unusable.
        RuntimeError: the program does not reproduce the model.
    """
    out = Path(out)
    if out.suffix != ".pt2":
        raise UserError(f"an exported program ends in .pt2, got {out}; rename --out")
    if not out.resolve().parent.is_dir():
        raise UserError(f"no folder {out.resolve().parent} to write {out.name} to; make it, or change --out")
    segmentor, config, classes, checkpoint = load_segmentor(path, "cpu", which)
    height, width = size or config.data.crop
    example = _noise(height, width, seed=0)
    program = torch.export.export(LogitsOnly(segmentor).eval(), (example,))
    facts = {
        "classes": list(classes.classes),
        "checkpoint": checkpoint.name,
        "palette": [list(c) for c in classes.palette],
    }
    temporary = out.with_name(f".{out.name}.writing.pt2")
    try:
        torch.export.save(program, temporary, extra_files={"ppar_dist.json": json.dumps(facts)})
        deviation, shape = _check(temporary, LogitsOnly(segmentor).eval(), _noise(height, width, seed=1))
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(out, checkpoint.name, classes.classes, (1, 3, height, width), shape, deviation)


def _check(file: Path, model: Callable[[Tensor], Tensor], images: Tensor) -> tuple[float, tuple[int, ...]]:
    """Largest deviation between program and model on images the export did not see, and the logits' shape."""
    program = torch.export.load(file).module()
    with torch.inference_mode():
        expected, found = model(images), program(images)
    deviation = float((expected - found).abs().max())
    if expected.shape != found.shape or not deviation <= _TOLERANCE:
        raise RuntimeError(
            f"the exported program deviates from the model by {deviation:.2e} (at most {_TOLERANCE})"
        )
    return deviation, tuple(found.shape)


def _noise(height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)
