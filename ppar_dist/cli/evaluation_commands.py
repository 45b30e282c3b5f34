"""Commands on scores: ``evaluate`` and ``compare``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ppar_dist import exit_codes
from ppar_dist.cli.app import (
    Json,
    Size,
    Trained,
    Weights,
    Which,
    app,
    device,
    on_this_machine,
    refuse_below_1,
)
from ppar_dist.cli.progress import count_images
from ppar_dist.errors import UserError
from ppar_dist.launch.rank import is_ours
from ppar_dist.storage.location import Location, location

if TYPE_CHECKING:  # loads torch
    from ppar_dist.evaluation.results import Results

_OPTIONS = {"scales": "--scale"}  # options that are not called as their keys

Csv = Annotated[bool, Parameter(name="--csv", help="print CSV")]


@app.command
def evaluate(
    checkpoint: Trained,
    /,
    *,
    target: list[str] | None = None,
    which: Which = "latest",
    weights: Weights = "raw",
    preset: Literal["rein", "tqdm", "famix", "mmseg"] | None = None,
    size: str | None = None,
    unresized: list[str] | None = None,
    mode: Literal["whole", "slide"] | None = None,
    crop: Size | None = None,
    stride: Size | None = None,
    flip: bool | None = None,
    scale: list[float] | None = None,
    labels: Literal["own", "test"] | None = None,
    batch: int | None = None,
    workers: int | None = None,
    nproc: int = 1,
    as_json: Json = False,
    as_csv: Csv = False,
) -> int:
    """Print the mIoU on labelled domains; options replace the run's own section `evaluation`.

    Args:
        target: NAME=FOLDER of a domain, or its URL; may be repeated
        preset: a published protocol
        size: what the model sees: pixels of the shorter side, HEIGHTxWIDTH that images just fit into, or own
        unresized: HEIGHTxWIDTH of images that stay as they are; may be repeated
        mode: whole images, or windows that slide over them
        crop: height and width of a window
        stride: from one window to the next, down and across
        flip: average with the mirror image
        scale: factor on the size; of several the probabilities are averaged
        labels: compare them at their own size, or at that of what the model sees
        batch: images of one size that the model sees at once
        workers: loader processes of a rank
        nproc: ranks on this machine, which share out the images
    """
    refuse_below_1("--nproc", nproc)
    targets = _targets(target or [])
    _refuse_both(as_json, as_csv)
    asked: dict[str, Any] = {
        "preset": preset,
        "size": None if size is None else _size(size),
        "unresized": None if unresized is None else [_pair("--unresized", text) for text in unresized],
        "mode": mode,
        "crop": crop,
        "stride": stride,
        "flip": flip,
        "scales": scale,
        "labels": labels,
        "batch": batch,
        "workers": workers,
    }
    options = _given(asked)
    if nproc > 1:
        words = ["evaluate", checkpoint, "--which", which, "--weights", weights]
        return _on_ranks(nproc, words, target or [], options, as_json, as_csv)
    results = _scored(*on_this_machine(checkpoint, which), targets, options, weights)
    if results is not None:
        print(results.to_json() if as_json else results.to_csv() if as_csv else results.table())
    return exit_codes.DONE


def _given(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that were given; refuses what contradicts itself."""
    from ppar_dist.evaluation.options import check_options

    options = {key: value for key, value in asked.items() if value is not None}
    check_options(options)
    return options


def _scored(
    checkpoint: Path, which: str, targets: Mapping[str, Location], options: Mapping[str, Any], weights: str
) -> Results | None:
    """Score here, alone or as one of several ranks, of which rank 0 has the results."""
    if is_ours():
        from ppar_dist.training.score_job import score_rank

        return score_rank(checkpoint, targets, which, count_images, options, weights)
    from ppar_dist.evaluation.evaluate import score

    return score(checkpoint, targets, device(), which, count_images, options, weights=weights)


@app.command
def compare(
    runs: list[Path],
    /,
    *,
    target: list[str] | None = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Set the scores of runs side by side; runs that differ in the seed alone are one row.

    Args:
        runs: folders of runs that have been scored
        target: name of a target; may be repeated (default: all that every run has)
    """
    _refuse_both(as_json, as_csv)
    from ppar_dist.evaluation.compare import compare

    found = compare(runs, target or [])
    print(found.to_json() if as_json else found.to_csv() if as_csv else found.table())


def _on_ranks(
    ranks: int,
    words: list[str],
    targets: Sequence[str],
    options: Mapping[str, Any],
    as_json: bool,
    as_csv: bool,
) -> int:
    """Start the same command on several ranks; returns the exit code of the job."""
    from ppar_dist.launch.front import launch

    for item in targets:
        words += ["--target", item]
    for key, value in options.items():
        option, pairs = _OPTIONS.get(key, f"--{key}"), key in ("crop", "stride")
        if value is True:
            words.append(option)
        elif pairs:
            words += [option, *map(str, value)]
        else:
            words += [word for each in _texts(key, value) for word in (option, each)]
    return launch([*words, *["--json"] * as_json, *["--csv"] * as_csv], ranks)


def _texts(key: str, value: Any) -> list[str]:
    """The values of an option that may be repeated, as they are typed."""
    if key == "unresized":
        return [f"{height}x{width}" for height, width in value]
    if key == "size" and isinstance(value, list):
        return [f"{value[0]}x{value[1]}"]
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def _targets(items: Sequence[str]) -> dict[str, Location]:
    targets: dict[str, Location] = {}
    for item in items:
        name, separator, folder = item.partition("=")
        if not (separator and name and folder):
            raise UserError(f"--target is NAME=FOLDER, got {item!r}; for example dusk=shards/camvid_0001TP")
        if name in targets:
            raise UserError(f"each --target has a name of its own, got {name} twice; rename one")
        targets[name] = location(folder)
    if not targets:
        raise UserError("nothing to evaluate on: give --target NAME=FOLDER")
    return targets


def _refuse_both(as_json: bool, as_csv: bool) -> None:
    if as_json and as_csv:
        raise UserError("the output is JSON or CSV, got --json and --csv; leave one out")


def _size(text: str) -> str | int | list[int]:
    if text == "own" or not text.isdecimal():
        return text if text == "own" else _pair("--size", text)
    return int(text)


def _pair(option: str, text: str) -> list[int]:
    """Height and width of ``HEIGHTxWIDTH``."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        known = "pixels, HEIGHTxWIDTH or own" if option == "--size" else "HEIGHTxWIDTH"
        raise UserError(f"{option} is {known}, got {text!r}; for example 512x1024")
    return [int(side) for side in found.groups()]
