"""What leaves a run: a model folder, an ONNX file, a ``torch.export`` program, the image tower alone.

Each is written whole or not at all, and only after it was loaded again and gave what the model gives.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from ppar_dist.errors import UserError
from ppar_dist.evaluation.model_folder import is_model_folder
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
    overwrite: bool = False,
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
        overwrite: replace a file, or a model folder, that is there.

    Raises:
        UserError: ``out`` has no such ending, is there already or its folder is missing, or the model cannot
            be written so.
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
    _refuse_what_is_there(out, form, overwrite)
    if size is not None and form not in _SIZED:
        raise UserError(f"--size fixes an onnx or pt2 file, an export as {form} takes any; leave it out")
    module = importlib.import_module(f"{__name__}.{_MODULES[form]}")
    sized = (size,) if form in _SIZED else ()
    made: Exported = module.write(path, out, *sized, which, weights)
    return replace(made, weights=weights)


def _refuse_what_is_there(out: Path, form: Format, overwrite: bool) -> None:
    if form != "folder":
        if out.exists() and not overwrite:
            raise UserError(f"{out} exists, and an export replaces nothing; rename --out, or add --overwrite")
        return
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_model_folder(out):
        raise UserError(f"{out} exists and is neither an empty folder nor a model folder; rename --out")
    if not overwrite:
        raise UserError(
            f"{out} is a model folder already, and an export replaces nothing; rename --out, or add "
            "--overwrite (what was written into its README.md is lost then)"
        )


def format_of(out: Path) -> Format:
    """The format that a path asks for.

    Raises:
        UserError: its ending is of none.
    """
    for form in get_args(Format):
        if form != "tower" and out.suffix == _ENDINGS[form]:
            found: Format = form
            return found
    if out.suffix == _ENDINGS["tower"]:
        raise UserError(
            f"a .safetensors file is the image tower alone, got {out}: add --format tower if that is meant; "
            "the whole model is a folder (--out without an ending), .onnx or .pt2"
        )
    raise UserError(
        f"--out ends in .onnx, .pt2, .safetensors (with --format tower) or in nothing (a model folder), got "
        f"{out}; rename it, or say what it is with --format folder, onnx, pt2 or tower"
    )
