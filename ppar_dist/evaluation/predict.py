"""Predictions for anybody's images: palette PNG, blended overlay and a legend.

A picture that cannot be done is reported, and the others are done. The memory is that of the decoded picture
and a small part more, whatever the number of classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ppar_dist.class_sets import ClassSet
from ppar_dist.errors import UserError
from ppar_dist.evaluation.labelling import labels_of, logits_of
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.evaluation.palette_images import legend_image, overlay_image, palette_image, write_picture
from ppar_dist.evaluation.photos import attempt, groups, model_input, read
from ppar_dist.evaluation.picture_files import LEGEND, Failure, PictureFile, picture_files, possible_results
from ppar_dist.pictures import Span, check_span
from ppar_dist.text import one_line, visible

_LONGEST_JPEG = 65500  # pixels of a side


@dataclass(frozen=True)
class PredictedImage:
    """The files written for one image."""

    image: Path
    labels: Path
    overlay: Path

    def __str__(self) -> str:
        return visible(f"{self.image}: {self.labels}, {self.overlay}")


@dataclass(frozen=True)
class Predictions:
    """What became of the pictures, each list in their order."""

    done: list[PredictedImage]
    failed: list[Failure]
    legend: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as printed by ``--json``."""
        return {
            "images": [
                {"image": str(item.image), "labels": str(item.labels), "overlay": str(item.overlay)}
                for item in self.done
            ],
            "failures": [{"image": str(item.image), "error": item.reason} for item in self.failed],
            "legend": str(self.legend),
        }

    def __str__(self) -> str:
        total = len(self.done) + len(self.failed)
        return f"{len(self.done)} of {total} done, {len(self.failed)} failed"


_Result = PredictedImage | Failure


def predict(
    path: Path,
    images: Sequence[Path],
    out: Path,
    device: torch.device | str = "cpu",
    which: str = "latest",
    overwrite: bool = False,
    batch: int = 1,
    span: Span | None = None,
    watch: Callable[[PredictedImage | Failure, int, int], None] = lambda *_: None,
    weights: str = "raw",
) -> Predictions:
    """Segment images with a run or checkpoint.

    ``out`` gets ``<name>.png`` (indexed, pixel values are class ids, the image's own size) and
    ``<name>_overlay.jpg`` (``.png`` above JPEG's longest side) for each image, in the folders that it lies in
    below a given one, and ``legend.png``.

    Args:
        path: a run folder or a checkpoint folder.
        images: image files, or folders that are searched with all below.
        out: a folder, created here.
        device: where the model runs.
        which: ``latest`` or ``best`` (on held-out source data), for a run folder.
        overwrite: whether ``out`` may hold files already.
        batch: how many images of one size the model sees at once.
        span: values that become 0 and 255, for images of more than 8 bits.
        watch: called with (result, images done or failed, images in all) after each.
        weights: ``raw``, of the last step, or ``averaged``, their moving average.

    Raises:
        UserError: a path does not exist, ``out`` is in use, or the checkpoint is unusable.
    """
    if span is not None:
        check_span(span)
    files, lost = picture_files(images, out)
    _check_out(out, files, overwrite)
    segmentor, config, classes, _ = load_segmentor(path, device, which, weights)
    _start(out, classes)
    predictor = _Predictor(segmentor, config.data.size, torch.device(device), classes, out, span)
    results: dict[PurePath, _Result] = {}
    for number, failure in enumerate(lost, 1):
        watch(failure, number, len(lost) + len(files))
    for name, result in predictor.run(files, batch):
        results[name] = result
        watch(result, len(lost) + len(results), len(lost) + len(files))
    ordered = [results[file.name] for file in files]
    done = [item for item in ordered if isinstance(item, PredictedImage)]
    failed = [item for item in ordered if isinstance(item, Failure)]
    return Predictions(done, lost + failed, out / LEGEND)


@dataclass(frozen=True)
class _Predictor:
    """A model and where its results go."""

    segmentor: nn.Module
    size: int  # pixels of the shorter side that the model sees
    device: torch.device
    classes: ClassSet
    out: Path
    span: Span | None

    def run(self, files: Sequence[PictureFile], batch: int) -> Iterator[tuple[PurePath, _Result]]:
        """Name and result of each picture, as they are done."""
        for group in groups(files, batch, self.size):
            yield from self._segmented(group)  # its photos are freed before others are read

    def _segmented(self, group: Sequence[PictureFile]) -> Iterator[tuple[PurePath, _Result]]:
        """Results of pictures that the model sees at once."""
        photos: dict[PictureFile, Image.Image] = {}
        for file in group:
            photo = attempt(file, partial(read, file.path, self.span))
            if isinstance(photo, Failure):
                yield file.name, photo
            else:
                photos[file] = photo
        logits = attempt(group[0], partial(self._logits, list(photos.values())))
        for number, (file, photo) in enumerate(photos.items()):
            if isinstance(logits, Failure):
                yield file.name, Failure(file.path, logits.reason)
            else:
                yield file.name, attempt(file, partial(self._write, file, photo, logits[number]))

    def _logits(self, photos: Sequence[Image.Image]) -> Tensor:
        if not photos:
            return torch.empty(0)
        inputs = [model_input(photo, self.size) for photo in photos]  # each (3, H, W)
        images = torch.stack(inputs) if len(inputs) > 1 else inputs[0][None]
        return logits_of(self.segmentor, images.to(self.device))  # (B, K, h, w)

    def _write(self, file: PictureFile, photo: Image.Image, logits: Tensor) -> PredictedImage:
        """Save what the logits (K, h, w) say of a photo, both files or none."""
        pixels = labels_of(logits, (photo.height, photo.width)).cpu().numpy()
        labels, jpeg, png = (self.out / result for result in possible_results(file.name))
        overlay = png if max(photo.size) > _LONGEST_JPEG else jpeg
        try:
            labels.parent.mkdir(parents=True, exist_ok=True)
            write_picture(palette_image(pixels, self.classes), labels)
            write_picture(overlay_image(photo, pixels, self.classes), overlay)
        except OSError as error:
            with contextlib.suppress(OSError):  # the first failure is the one to report
                labels.unlink(missing_ok=True)
            raise UserError(
                f"cannot write its results: {_said(error)}; make room, or shorten its name"
            ) from None
        return PredictedImage(file.path, labels, overlay)


def _check_out(out: Path, files: Sequence[PictureFile], overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out is a folder, but {out} is a file; give another path")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(f"--out {out} is not empty; empty it, or give a new folder")
    inputs = {file.path.resolve() for file in files}
    results = [out / LEGEND, *(out / result for file in files for result in possible_results(file.name))]
    for result in results:
        if result.resolve() in inputs:
            raise UserError(f"a result would replace the image {result}; give another --out")


def _start(out: Path, classes: ClassSet) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_picture(legend_image(classes), out / LEGEND)
    except OSError as error:
        raise UserError(f"cannot write into folder {out}: {_said(error)}; give another --out") from None


def _said(error: OSError) -> str:
    return error.strerror or one_line(error)
