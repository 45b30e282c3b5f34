"""Predictions for anybody's images: palette PNG, blended overlay and a legend; of videos the overlay.

A picture that cannot be done is reported, and the others are done. The memory is that of the decoded picture
and a small part more, whatever the number of classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ppar_dist.class_sets import ClassSet
from ppar_dist.errors import UserError
from ppar_dist.evaluation.confidence import confidence_of
from ppar_dist.evaluation.label_coding import Coding, check_coding, check_frame_names, label_image
from ppar_dist.evaluation.labelling import labels_of, logits_of
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.evaluation.palette_images import OverlayStyle, legend_image, overlay_image, write_picture
from ppar_dist.evaluation.photos import attempt, groups, model_input, read
from ppar_dist.evaluation.picture_files import (
    ENDINGS,
    LEGEND,
    VIDEO_SUFFIXES,
    Failure,
    PictureFile,
    picture_files,
    possible_results,
    video_files,
)
from ppar_dist.evaluation.videos import convert, need_library
from ppar_dist.pictures import Span, check_span
from ppar_dist.text import one_line, visible

_LONGEST_JPEG = 65500  # pixels of a side
_CONFIDENCE = "_confidence.png"


@dataclass(frozen=True)
class PredictedImage:
    """The files written for one image."""

    image: Path
    labels: Path
    overlay: Path
    confidence: Path | None = None

    def to_dict(self) -> dict[str, str]:
        """Plain values, as printed by ``--json``."""
        found = {"image": str(self.image), "labels": str(self.labels), "overlay": str(self.overlay)}
        return found if self.confidence is None else {**found, "confidence": str(self.confidence)}

    def __str__(self) -> str:
        more = "" if self.confidence is None else f", {self.confidence}"
        return visible(f"{self.image}: {self.labels}, {self.overlay}{more}")


@dataclass(frozen=True)
class PredictedVideo:
    """The file written for one video."""

    video: Path
    overlay: Path
    frames: int
    had_sound: bool  # which the overlay has not

    def to_dict(self) -> dict[str, str | int | bool]:
        """Plain values, as printed by ``--json``."""
        names = {"video": str(self.video), "overlay": str(self.overlay)}
        return {**names, "frames": self.frames, "had_sound": self.had_sound}

    def __str__(self) -> str:
        sound = ", without its sound" if self.had_sound else ""
        return visible(f"{self.video}: {self.overlay}, {self.frames} frames{sound}")


@dataclass(frozen=True)
class Predictions:
    """What became of the pictures and videos, each list in their order."""

    done: list[PredictedImage]
    failed: list[Failure]
    legend: Path
    videos: list[PredictedVideo] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as printed by ``--json``."""
        found = {
            "images": [item.to_dict() for item in self.done],
            "failures": [{"image": str(item.image), "error": item.reason} for item in self.failed],
            "legend": str(self.legend),
        }
        return {**found, "videos": [item.to_dict() for item in self.videos]} if self.videos else found

    def __str__(self) -> str:
        done = len(self.done) + len(self.videos)
        return f"{done} of {done + len(self.failed)} done, {len(self.failed)} failed"


_Result = PredictedImage | Failure


@dataclass(frozen=True)
class Outputs:
    """What is written for a picture.

    Raises:
        UserError: Cityscapes' evaluator would take a confidence for labels.
    """

    style: OverlayStyle = field(default_factory=OverlayStyle)
    confidence: bool = False  # also ``<name>_confidence.png``: probability of each label, 255 is 1
    coding: Coding = "train"  # of labels: class ids, or Cityscapes' label ids without a palette

    def __post_init__(self) -> None:
        if self.confidence and self.coding == "cityscapes":
            raise UserError(
                "--confidence writes pictures that Cityscapes' evaluator would take for labels; "
                "leave it out with --coding cityscapes, and write it into another folder"
            )

    @property
    def endings(self) -> tuple[str, ...]:
        """Of the files that may be written for a picture."""
        return (*ENDINGS, _CONFIDENCE) if self.confidence else ENDINGS


def predict(
    path: Path,
    images: Sequence[Path],
    out: Path,
    device: torch.device | str = "cpu",
    which: str = "latest",
    overwrite: bool = False,
    batch: int = 1,
    span: Span | None = None,
    watch: Callable[[PredictedImage | PredictedVideo | Failure, int, int], None] = lambda *_: None,
    weights: str = "raw",
    outputs: Outputs = Outputs(),
    watch_frames: Callable[[int, int], None] = lambda *_: None,
) -> Predictions:
    """Segment images and videos with a run or checkpoint.

    ``out`` gets ``<name>.png`` (indexed, pixel values are class ids, the image's own size) and
    ``<name>_overlay.jpg`` (``.png`` above JPEG's longest side) for each image, in the folders that it is in
    below a given one, ``<name>.mp4`` for each video, and ``legend.png``.

    Args:
        path: a run folder or a checkpoint folder.
        images: image and video files, or folders that are searched for images with all below.
        out: a folder, created here.
        device: where the model runs.
        which: ``latest`` or ``best`` (on held-out source data), for a run folder.
        overwrite: whether ``out`` may hold files already.
        batch: how many images of one size the model sees at once.
        span: values that become 0 and 255, for images of more than 8 bits.
        watch: called with (result, images done or failed, images in all) after each.
        weights: ``raw``, of the last step, or ``averaged``, their moving average.
        outputs: how results look, and which there are.
        watch_frames: called with (frames done, frames in all, as far as known) of a video.

    Raises:
        UserError: a path does not exist, ``out`` is in use, the checkpoint is unusable, or of classes that
            the coding lacks.
    """
    if span is not None:
        check_span(span)
    files, lost, videos = _inputs(images, out, outputs, overwrite)
    segmentor, config, classes, _ = load_segmentor(path, device, which, weights)
    check_coding(outputs.coding, classes)
    _start(out, classes)
    predictor = _Predictor(segmentor, config.data.size, torch.device(device), classes, out, span, outputs)
    done, total = count(1), len(lost) + len(files) + len(videos)
    for failure in lost:
        watch(failure, next(done), total)
    results: dict[PurePath, _Result] = {}
    for name, result in predictor.run(files, batch):
        results[name] = result
        watch(result, next(done), total)
    films: list[PredictedVideo | Failure] = []
    for film in predictor.videos(videos, batch, watch_frames):
        films.append(film)
        watch(film, next(done), total)
    return _in_order(lost, [*(results[file.name] for file in files), *films], out)


def _inputs(
    images: Sequence[Path], out: Path, outputs: Outputs, overwrite: bool
) -> tuple[list[PictureFile], list[Failure], list[PictureFile]]:
    """The pictures, what is not one, and the videos; refuses an ``out`` that cannot take their results."""
    videos, others = _videos(images, outputs)
    files, lost = picture_files(others, out, outputs.endings) if others or not videos else ([], [])
    if outputs.coding == "cityscapes":
        check_frame_names([file.name for file in files])
    results = [*_results(out, files, outputs), *(out / video.name for video in videos)]
    _check_out(out, results, {file.path for file in (*files, *videos)}, overwrite)
    return files, lost, videos


def _in_order(
    lost: Sequence[Failure], ordered: Sequence[PredictedImage | PredictedVideo | Failure], out: Path
) -> Predictions:
    return Predictions(
        done=[item for item in ordered if isinstance(item, PredictedImage)],
        failed=[*lost] + [item for item in ordered if isinstance(item, Failure)],
        legend=out / LEGEND,
        videos=[item for item in ordered if isinstance(item, PredictedVideo)],
    )


def _videos(paths: Sequence[Path], outputs: Outputs) -> tuple[list[PictureFile], list[Path]]:
    """The videos among the paths, and the others."""
    videos = [
        path for path in map(Path, paths) if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()
    ]
    if not videos:
        return [], list(paths)
    need_library()
    if outputs.confidence or outputs.coding != "train":
        raise UserError(
            f"--confidence and --coding are of pictures, and {visible(str(videos[0]))} is a video, of which "
            "an overlay is written; leave them out, or give its frames as images"
        )
    return video_files(videos), [path for path in paths if Path(path) not in videos]


@dataclass(frozen=True)
class _Predictor:
    """A model and where its results go."""

    segmentor: nn.Module
    size: int  # pixels of the shorter side that the model sees
    device: torch.device
    classes: ClassSet
    out: Path
    span: Span | None
    outputs: Outputs

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

    def videos(
        self, files: Sequence[PictureFile], batch: int, tell: Callable[[int, int], None]
    ) -> Iterator[PredictedVideo | Failure]:
        """The result of each video, as they are done."""
        for file in files:
            yield attempt(file, partial(self._video, file, batch, tell))

    def _video(self, file: PictureFile, batch: int, tell: Callable[[int, int], None]) -> PredictedVideo:
        """Write a video's overlay; raises UserError, too, where only its beginning could be done."""
        overlay = self.out / file.name
        written = convert(file.path, overlay, self._overlays, batch, tell)
        if written.fault is not None:
            frames = f"{overlay} holds the {written.frames} frames before"
            raise UserError(f"the video is not done to its end: {written.fault}; {frames}")
        return PredictedVideo(file.path, overlay, written.frames, written.has_sound)

    def _overlays(self, photos: Sequence[Image.Image]) -> list[Image.Image]:
        """Of photos of one size."""
        pairs = zip(photos, self._logits(photos), strict=True)
        return [self._overlay(photo, self._labels(photo, logits)) for photo, logits in pairs]

    def _labels(self, photo: Image.Image, logits: Tensor) -> NDArray[np.uint8]:
        labels: NDArray[np.uint8] = labels_of(logits, (photo.height, photo.width)).cpu().numpy()
        return labels

    def _logits(self, photos: Sequence[Image.Image]) -> Tensor:
        if not photos:
            return torch.empty(0)
        inputs = [model_input(photo, self.size) for photo in photos]  # each (3, H, W)
        images = torch.stack(inputs) if len(inputs) > 1 else inputs[0][None]
        return logits_of(self.segmentor, images.to(self.device))  # (B, K, h, w)

    def _write(self, file: PictureFile, photo: Image.Image, logits: Tensor) -> PredictedImage:
        """Save what the logits (K, h, w) say of a photo, all files or none."""
        pixels = self._labels(photo, logits)
        names = [self.out / result for result in possible_results(file.name, self.outputs.endings)]
        labels, jpeg, png, *others = names
        overlay = png if max(photo.size) > _LONGEST_JPEG else jpeg
        try:
            labels.parent.mkdir(parents=True, exist_ok=True)
            write_picture(label_image(pixels, self.classes, self.outputs.coding), labels)
            for confidence in others:
                write_picture(_confidence_image(logits, pixels.shape), confidence)
            write_picture(self._overlay(photo, pixels), overlay)
        except OSError as error:
            for written in (labels, *others):
                with contextlib.suppress(OSError):  # the first failure is the one to report
                    written.unlink(missing_ok=True)
            raise UserError(
                f"cannot write its results: {_said(error)}; make room, or shorten its name"
            ) from None
        return PredictedImage(file.path, labels, overlay, *others)

    def _overlay(self, photo: Image.Image, labels: NDArray[np.uint8]) -> Image.Image:
        style = self.outputs.style
        return overlay_image(photo, labels, self.classes, style.opacity, style.outlines, style.legend)


def _confidence_image(logits: Tensor, size: tuple[int, int]) -> Image.Image:
    """``confidence_of`` as grey values: 255 is a probability of 1."""
    return Image.fromarray((confidence_of(logits, size) * 255).round().to(torch.uint8).cpu().numpy())


def _results(out: Path, files: Sequence[PictureFile], outputs: Outputs) -> list[Path]:
    """Every file that may be written."""
    found = [result for file in files for result in possible_results(file.name, outputs.endings)]
    return [out / LEGEND, *(out / result for result in found)]


def _check_out(out: Path, results: Sequence[Path], inputs: Collection[Path], overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out is a folder, but {out} is a file; give another path")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(f"--out {out} is not empty; empty it, or give a new folder")
    read_from = {path.resolve() for path in inputs}
    for result in results:
        if result.resolve() in read_from:
            raise UserError(f"a result would replace the image {result}; give another --out")


def _start(out: Path, classes: ClassSet) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_picture(legend_image(classes), out / LEGEND)
    except OSError as error:
        raise UserError(f"cannot write into folder {out}: {_said(error)}; give another --out") from None


def _said(error: OSError) -> str:
    return error.strerror or one_line(error)
