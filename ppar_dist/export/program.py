"""A model as one self-contained program (``torch.export``), checked against the model."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError as TorchDynamoUserError
from torch.export import Dim

from ppar_dist.errors import UserError
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.export.exported import ExportedProgram
from ppar_dist.files.durable import write_atomically
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.text import one_line

# Kernels may be chosen differently in the exported program; labels must not change for that.
TOLERANCE = 1e-3


class LogitsOnly(nn.Module):
    """A segmentor that takes 0..255 images and returns its class logits and nothing else."""

    def __init__(self, segmentor: nn.Module) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) uint8 → logits (B, K, H/4, W/4) float32."""
        logits: Tensor = self.segmentor(images, dense=False).logits
        return logits


def write(
    path: Path,
    out: Path,
    size: tuple[int, int] | None = None,
    which: str = "latest",
    weights: str = "raw",
) -> ExportedProgram:
    """Write a ``.pt2`` program: uint8 images (B, 3, height, width) → logits (B, K, height/4, width/4).

    It takes any number of images, of any size that is a multiple of the model's coarsest stride, on any
    device: ``torch.export.passes.move_to_device_pass`` moves it. The program is loaded again and run on noise
    of other sizes; the file appears under its name only when its logits agree with the model's. Class names,
    the palette and the checkpoint travel inside as ``ppar_dist.json``.

    Args:
        path: a run, checkpoint or model folder.
        out: the file to write.
        size: (height, width) in pixels the program is fixed to; None: any.
        which: ``latest`` or ``best``, for a run folder.
        weights: ``raw`` or ``averaged``.

    Raises:
        UserError: the checkpoint is unusable, or its model is not made for any size.
        RuntimeError: the program does not reproduce the model.
    """
    segmentor, _, classes, checkpoint = load_segmentor(path, "cpu", which, weights)
    model = LogitsOnly(segmentor).eval()
    multiple = 1 if size else size_multiple(segmentor)
    program = exported(model, multiple, size)
    facts = {
        "classes": list(classes.classes),
        "checkpoint": checkpoint.name,
        "palette": [list(c) for c in classes.palette],
    }
    content = io.BytesIO()  # torch aborts the process where it writes to a file that storage does not take
    torch.export.save(program, content, extra_files={"ppar_dist.json": json.dumps(facts)})
    content.seek(0)
    loaded = torch.export.load(content).module()
    images = [noise(number, *each, seed=number) for number, each in enumerate(other_sizes(multiple, size), 1)]
    try:
        deviation = max(deviation_on(each, model, loaded, "program") for each in images)
    except AssertionError as error:  # a guard of the program: its sizes are those of the example
        if size is not None:
            raise
        raise _not_for_any_size(error) from None
    write_atomically(out, content.getbuffer())
    shapes = shapes_of(len(classes.classes), size)
    return ExportedProgram(out, "pt2", checkpoint.name, classes.classes, deviation, *shapes, multiple)


def shapes_of(
    num_classes: int, size: tuple[int, int] | None
) -> tuple[tuple[int | str, ...], tuple[int | str, ...]]:
    """Shapes of images and logits, a word where any number will do."""
    sides: tuple[int | str, int | str] = size or ("height", "width")
    grid: tuple[int | str, ...] = ("height/4", "width/4")
    if size:
        grid = tuple(math.ceil(side / 4) for side in size)
    return ("batch", 3, *sides), ("batch", num_classes, *grid)


def other_sizes(multiple: int, size: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Sizes that a program made by ``exported`` takes and was not made with."""
    return [size] if size else [(2 * multiple, 5 * multiple), (4 * multiple, 3 * multiple)]


def size_multiple(segmentor: Segmentor) -> int:
    """Sides of which every level of the model has whole cells."""
    backbone = segmentor.backbone
    return math.lcm(backbone.multiple, math.ceil(max(backbone.strides)), 4)


def exported(model: nn.Module, multiple: int, size: tuple[int, int] | None) -> torch.export.ExportedProgram:
    """The program of a model for any number of images, of one size or of any.

    Raises:
        UserError: the model is not made for any size.
    """
    batch = Dim("batch", min=1)
    if size is not None:
        return torch.export.export(model, (noise(2, *size, seed=0),), dynamic_shapes=({0: batch},))
    _refuse_windows(model)
    example = noise(2, 3 * multiple, 4 * multiple, seed=0)
    sides = {axis: multiple * Dim(name, min=2) for axis, name in ((2, "rows"), (3, "columns"))}
    try:
        return torch.export.export(model, (example,), dynamic_shapes=({0: batch, **sides},))
    except (TorchDynamoUserError, RuntimeError) as error:
        raise _not_for_any_size(error) from None


def _refuse_windows(model: nn.Module) -> None:
    """Refuse a tower that attends within windows, such as Swin.

    Padding to whole windows and their masks are worked out from the size of each image, and tracing them for
    every size does not end in minutes.

    Raises:
        UserError: the model has such a tower.
    """
    kinds = {type(module).__name__ for module in model.modules()}
    if windows := sorted(kind for kind in kinds if "Window" in kind and "Attention" in kind):
        raise UserError(
            f"a tower with attention in windows ({windows[0]}) cannot become a program for images of any "
            "size in useful time; fix one with --size HEIGHT WIDTH"
        )


def _not_for_any_size(error: Exception) -> UserError:
    return UserError(
        f"this model cannot become a program for images of any size ({one_line(error)[:200]}); fix one "
        "with --size"
    )


def deviation_on(
    images: Tensor, model: Callable[[Tensor], Tensor], program: Callable[[Tensor], Tensor], name: str
) -> float:
    """Largest deviation between program and model on images the export did not see.

    Raises:
        RuntimeError: it is more than ``TOLERANCE``.
    """
    with torch.inference_mode():
        expected, found = model(images), program(images)
    same = expected.shape == found.shape
    deviation = float((expected - found).abs().max()) if same else math.inf
    if not deviation <= TOLERANCE:
        raise RuntimeError(
            f"the exported {name} deviates from the model by {deviation:.2e} (at most {TOLERANCE})"
        )
    return deviation


def noise(images: int, height: int, width: int, seed: int) -> Tensor:
    """Images (B, 3, height, width) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8, generator=generator)
