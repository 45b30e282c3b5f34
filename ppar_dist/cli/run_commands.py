"""Commands on what a run left: ``predict``, ``audit``, ``export``, ``inspect`` and others."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ppar_dist import exit_codes
from ppar_dist.cli.app import (
    Json,
    Range,
    Size,
    Trained,
    Weights,
    Which,
    app,
    device,
    on_this_machine,
    refuse_below_1,
)
from ppar_dist.cli.progress import show_progress
from ppar_dist.errors import UserError
from ppar_dist.export import Format

_LONGEST_SIDE = 16384  # pixels of an exported program: longer than any camera's, too long for most memories


@app.command
def predict(
    checkpoint: Trained,
    images: list[Path],
    /,
    *,
    out: Path,
    which: Which = "latest",
    weights: Weights = "raw",
    batch: int = 1,
    value_range: Range | None = None,
    opacity: float = 0.5,
    outlines: bool = False,
    legend: bool = False,
    confidence: bool = False,
    coding: Literal["train", "cityscapes"] = "train",
    overwrite: bool = False,
    as_json: Json = False,
) -> int:
    """Label images and videos of your own; exit code 78 if one could not be done.

    Args:
        images: files, videos too, or folders that are searched for images with all below
        out: folder for labels and overlays
        batch: images of one size that the model sees at once
        opacity: of the class colours in overlays, 0 to 1
        outlines: draw white lines between classes into overlays
        legend: draw names and colours of the classes that occur into overlays
        confidence: also write the probability of each label as a grey PNG, 255 is 1
        coding: numbers in label files: class ids, or Cityscapes' label ids for its test server
        overwrite: write into a folder that holds files
    """
    refuse_below_1("--batch", batch)
    from ppar_dist.evaluation.palette_images import OverlayStyle
    from ppar_dist.evaluation.predict import Outputs, predict

    path, which_one = on_this_machine(checkpoint, which)
    found = predict(
        path,
        images,
        out,
        device(),
        which_one,
        overwrite,
        batch,
        value_range,
        partial(_show_result, as_json),
        weights,
        Outputs(OverlayStyle(opacity, outlines, legend), confidence, coding),
        partial(show_progress, "frames"),
    )
    print(json.dumps(found.to_dict(), indent=1) if as_json else f"legend: {found.legend}")
    print(found, file=sys.stderr)
    return exit_codes.CONFIG if found.failed else exit_codes.DONE


def _show_result(as_json: bool, result: object, done: int, total: int) -> None:
    """A picture or video that is done or failed, and how far the others are; with --json, failures alone."""
    from ppar_dist.evaluation.picture_files import Failure

    show_progress("predict", total, total)  # clears the line
    if isinstance(result, Failure):
        print(result, file=sys.stderr, flush=True)
    elif not as_json:
        print(result, flush=True)
    show_progress("predict", done, total)


@app.command
def audit(run: Path, /, *, images: int = 200, regions: int = 50, as_json: Json = False) -> None:
    """Let a run's sources judge each other's labels, and draw the most distrusted regions.

    Args:
        run: a run's folder
        images: of each source, spread evenly; 0: all
        regions: how many to draw, the most distrusted first
    """
    if images < 0 or regions < 1:
        raise UserError(
            f"--images is 0 (all) or more and --regions 1 or more, got {images} and {regions}; correct them"
        )
    from ppar_dist.evaluation.audit import audit

    found = audit(run, images, regions, device())
    if as_json:
        print(found.list.read_text(encoding="utf-8"), end="")
    else:
        print(f"{found.table()}\nregions drawn: {len(found.regions)}, listed in {found.list}")


@app.command
def export(
    checkpoint: Trained,
    /,
    *,
    out: Path,
    form: Annotated[Format | None, Parameter(name="--format")] = None,
    size: Size | None = None,
    which: Which = "latest",
    weights: Weights = "raw",
    overwrite: bool = False,
    as_json: Json = False,
) -> None:
    """Write the model for others: a folder that stands alone, ONNX, a torch.export program, or its tower.

    Args:
        out: FOLDER, FILE.onnx, FILE.pt2, or FILE.safetensors for a tower
        form: what to write (default: by the ending of --out)
        size: height and width that an onnx or pt2 file is fixed to (default: any)
        overwrite: replace a file or model folder that is there
    """
    if size is not None and not 1 <= min(size) <= max(size) <= _LONGEST_SIDE:
        raise UserError(f"--size is from 1 to {_LONGEST_SIDE} pixels each, got {size[0]} {size[1]}")
    from ppar_dist.export import export

    path, which_one = on_this_machine(checkpoint, which)
    done = export(path, out, form, size, which_one, weights, overwrite)
    print(json.dumps(done.to_dict(), indent=1) if as_json else done)


@app.command
def inspect(path: Path, /, *, as_json: Json = False) -> None:
    """Show the contents of a checkpoint, run, shard or index.

    Args:
        path: a folder, or a file in it
    """
    from ppar_dist.doctor.describe import describe, inspect

    facts = inspect(path)
    print(json.dumps(facts, indent=1) if as_json else describe(facts))


@app.command
def report(run: Path, /, *, against: Path | None = None) -> None:
    """Write report.html of a run.

    Args:
        run: its folder
        against: another run, beside which it is shown
    """
    from ppar_dist.report import write_report

    print(write_report(run, against))


@app.command
def ledger(run: Path, /, *, as_json: Json = False) -> int:
    """Prove from a run's ledger that every sample was used once; exit code 78 if not.

    Args:
        run: its folder
    """
    from ppar_dist.run.audit import audit

    found = audit(run)
    print(json.dumps(found.to_json(), indent=1) if as_json else found.describe())
    return exit_codes.CONFIG if found.problems else exit_codes.DONE
