"""What leaves a run: a model folder, an ONNX file, a ``torch.export`` program, the image tower alone.

Each is written whole or not at all, and only after it was loaded again and gave what the model gives.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Literal, get_args

from ppar_dist.errors import UserError
from ppar_dist.export.exported import Exported

Format = Literal["folder", "onnx", "pt2", "tower"]

_ENDINGS: dict[Format, str] = {"folder": "", "onnx": ".onnx", "pt2": ".pt2", "tower": ".safetensors"}
_MODULES: dict[Format, str] = {
    "folder": "folder",
    "onnx": "onnx_file",
    "pt2": "program",
    "tower": "tower",
}  # imported when asked for
_SIZED = ("onnx", "pt2")


def export(
    path: Path,
    out: Path,
    form: Format | None = None,
    size: tuple[int, int] | None = None,
    which: str = "latest",
    weights: str = "raw",
) -> Exported:
    """Write a model so that others can use it.

    Args:
        path: a run folder, a checkpoint folder or a model folder.
        out: the file or folder to write.
        form: ``folder``, ``onnx``, ``pt2`` or ``tower``; None: by the ending of ``out`` (none: a
            folder).
        size: (height, width) in pixels that an onnx or pt2 file is fixed to; None: any.
        which: ``latest`` or ``best``, for a run folder.
        weights: ``raw``, of the last step, or ``averaged``, their moving average.

    Raises:
        UserError: ``out`` has no such ending, is in use or its folder is missing, or the model cannot be
            written so.
        RuntimeError: what was written does not reproduce the model.
    """
    out = Path(out)
    form = form or format_of(out)
    ending = _ENDINGS[form]
    if ending and out.suffix != ending:
        raise UserError(f"an export as {form} ends in {ending}, got {out}; rename --out or change --format")
    if ending and out.is_dir():
        raise UserError(f"an export as {form} is a file, but {out} is a folder; change --out")
    if not out.resolve().parent.is_dir():
        raise UserError(f"no folder {out.resolve().parent} to write {out.name} to; make it, or change --out")
    if size is not None and form not in _SIZED:
        raise UserError(f"--size fixes an onnx or pt2 file, an export as {form} takes any; leave it out")
    module = importlib.import_module(f"{__name__}.{_MODULES[form]}")
    sized = (size,) if form in _SIZED else ()
    made: Exported = module.write(path, out, *sized, which, weights)
    return made


def format_of(out: Path) -> Format:
    """The format that a path asks for.

    Raises:
        UserError: its ending is of none.
    """
    for form in get_args(Format):
        if form != "tower" and out.suffix == _ENDINGS[form]:
            found: Format = form
            return found
    raise UserError(
        f"--out ends in .onnx, .pt2 or in nothing (a model folder), got {out}; rename it, or say what it is "
        "with --format folder, onnx, pt2 or tower"
    )
