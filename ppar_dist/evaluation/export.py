"""Export a checkpoint as one self-contained program (``torch.export``), checked against the model."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError as TorchDynamoUserError
from torch.export import Dim, ExportedProgram

from ppar_dist.errors import UserError
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.files.durable import write_atomically
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.text import one_line

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
    input_shape: tuple[int | str, ...]  # a word where any number will do
    output_shape: tuple[int | str, ...]
    multiple: int  # of which any height and width are multiples, from twice on; 1 where they are fixed
    max_deviation: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self) | {"file": str(self.file)}

    def __str__(self) -> str:
        shape = "x".join(map(str, self.input_shape))
        sides = f" (multiples of {self.multiple})" if self.multiple > 1 else ""
        return (
            f"{self.file}: {self.checkpoint} for uint8 {shape}{sides}, logits within {self.max_deviation:.1e}"
        )


def export(path: Path, out: Path, size: tuple[int, int] | None = None, which: str = "latest") -> Exported:
    """Write a ``.pt2`` program: uint8 images (B, 3, height, width) → logits (B, K, height/4, width/4).

    It takes any number of images, of any size that is a multiple of the model's coarsest stride, on any
    device: ``torch.export.passes.move_to_device_pass`` moves it. The program is loaded again and run on noise
    of other sizes; the file appears under its name only when its logits agree with the model's. Class names,
    the palette and the checkpoint travel inside as ``ppar_dist.json``.

    Args:
        path: a run folder or a checkpoint folder.
        out: the file to write, ending in ``.pt2``.
        size: (height, width) in pixels the program is fixed to; None: any.
        which: ``latest`` or ``best``, for a run folder.

    Raises:
        UserError: ``out`` does not end in .pt2, is a folder or its folder is missing, the checkpoint is
            unusable, or its model is not made for any size.
        RuntimeError: the program does not reproduce the model.
    """
    out = Path(out)
    if out.suffix != ".pt2":
        raise UserError(f"an exported program ends in .pt2, got {out}; rename --out")
    if out.is_dir():
        raise UserError(f"an exported program is a file, but {out} is a folder; change --out")
    if not out.resolve().parent.is_dir():
        raise UserError(f"no folder {out.resolve().parent} to write {out.name} to; make it, or change --out")
    segmentor, _, classes, checkpoint = load_segmentor(path, "cpu", which)
    multiple = 1 if size else _multiple(segmentor)
    height, width = size or (3 * multiple, 4 * multiple)
    program = _program(LogitsOnly(segmentor).eval(), _noise(2, height, width, seed=0), multiple)
    facts = {
        "classes": list(classes.classes),
        "checkpoint": checkpoint.name,
        "palette": [list(c) for c in classes.palette],
    }
    content = io.BytesIO()  # torch aborts the process where it writes to a file that storage does not take
    torch.export.save(program, content, extra_files={"ppar_dist.json": json.dumps(facts)})
    others = [size] if size else [(2 * multiple, 5 * multiple), (4 * multiple, 3 * multiple)]
    images = [_noise(number, *each, seed=number) for number, each in enumerate(others, start=1)]
    deviation = max(_check(content, LogitsOnly(segmentor).eval(), each) for each in images)
    write_atomically(out, content.getbuffer())
    sides: tuple[int | str, int | str] = size or ("height", "width")
    grid: tuple[int | str, ...] = ("height/4", "width/4")
    if size:
        grid = tuple(math.ceil(side / 4) for side in size)
    shapes = ("batch", 3, *sides), ("batch", len(classes.classes), *grid)
    return Exported(out, checkpoint.name, classes.classes, *shapes, multiple, deviation)


def _multiple(segmentor: Segmentor) -> int:
    """Sides of which every level of the model has whole cells."""
    backbone = segmentor.backbone
    return math.lcm(backbone.multiple, math.ceil(max(backbone.strides)), 4)


def _program(model: nn.Module, example: Tensor, multiple: int) -> ExportedProgram:
    batch = Dim("batch", min=1)
    if multiple == 1:
        return torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    sides = {axis: multiple * Dim(name, min=2) for axis, name in ((2, "rows"), (3, "columns"))}
    try:
        return torch.export.export(model, (example,), dynamic_shapes=({0: batch, **sides},))
    except (TorchDynamoUserError, RuntimeError) as error:
        raise UserError(
            f"this model is no program for images of any size ({one_line(error)[:200]}); fix one with --size"
        ) from None


def _check(content: io.BytesIO, model: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Largest deviation between program and model on images the export did not see."""
    content.seek(0)
    program = torch.export.load(content).module()
    with torch.inference_mode():
        expected, found = model(images), program(images)
    deviation = float((expected - found).abs().max())
    if expected.shape != found.shape or not deviation <= _TOLERANCE:
        raise RuntimeError(
            f"the exported program deviates from the model by {deviation:.2e} (at most {_TOLERANCE})"
        )
    return deviation


def _noise(images: int, height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8, generator=generator)
