"""A trained model in Python: labels, features and scores."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ppar_dist.api import arguments
from ppar_dist.checkpoint import local_checkpoint
from ppar_dist.class_sets import ClassSet, Colour
from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.evaluation.confidence import confidence_of
from ppar_dist.evaluation.evaluate import evaluate
from ppar_dist.evaluation.labelling import labels_of, logits_of
from ppar_dist.evaluation.load import default_device, load_segmentor
from ppar_dist.evaluation.photos import MAX_RATIO, model_input, read
from ppar_dist.evaluation.results import Results
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.pictures import PictureError, photo_rgb

PathLike = str | os.PathLike[str]
Picture = Image.Image | npt.NDArray[np.uint8] | PathLike
Range = tuple[float, float]
Labels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def load(
    path: PathLike,
    device: torch.device | str | None = None,
    which: Literal["latest", "best"] = "latest",
    weights: Literal["raw", "averaged"] = "raw",
) -> Model:
    """Load a trained model; nothing is downloaded, but of a URL the checkpoint, once on this machine.

    Args:
        path: a run folder, one of its checkpoints, or a model folder; of the first two also the URL on object
            storage.
        device: where the model runs; None: the GPU, where torch sees one.
        which: of a run, the last checkpoint or the best (on held-out source data, never on a target).
        weights: of the last step, or their moving average.

    Raises:
        UserError: there is no whole model, no such device, or no such choice.
    """
    arguments.choice("which", which, ("latest", "best"))
    arguments.choice("weights", weights, ("raw", "averaged"))
    given = arguments.place("path", path)
    place = _device(default_device() if device is None else device)
    found, chosen = local_checkpoint(given, which)
    segmentor, config, classes, checkpoint = load_segmentor(found, place, chosen, weights)
    return Model(segmentor, config, classes, checkpoint, weights)


def _device(wanted: torch.device | str) -> torch.device:
    """A device that is there; raises UserError for any other."""
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError):
        raise UserError(f"a device is cpu, cuda or cuda:NUMBER, got {wanted!r}; correct it") from None
    if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
        raise UserError(
            f"torch sees {torch.cuda.device_count()} GPUs, so there is no {device}; give another device"
        )
    return device


class Model:
    """A trained model that labels images.

    Attributes:
        path: the checkpoint or model folder that it was loaded from.
        config: the configuration of its run.
        classes: names, by label.
        palette: RGB colours, by label.
        size: pixels of the shorter side of what the model sees of an image.
    """

    def __init__(
        self, segmentor: Segmentor, config: Config, classes: ClassSet, path: Path, weights: str = "raw"
    ) -> None:
        self._segmentor, self._weights = segmentor, weights
        self.path, self.config, self.size = path, config, config.data.size
        self.classes: tuple[str, ...] = classes.classes
        self.palette: tuple[Colour, ...] = classes.palette

    def __repr__(self) -> str:
        backbone = self.config.model.backbone.name
        return f"Model({str(self.path)!r}, {backbone}, {len(self.classes)} classes, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._segmentor.backbone.mean.device

    def to(self, device: torch.device | str) -> Model:
        """Move the model; returns it.

        Raises:
            UserError: there is no such device.
        """
        self._segmentor.to(_device(device))
        self._segmentor.bf16 = self.config.engine.precision == "bf16" and self.device.type == "cuda"
        return self

    @overload
    def predict(
        self, image: Picture, confidence: Literal[False] = False, *, value_range: Range | None = None
    ) -> Labels: ...

    @overload
    def predict(
        self, image: Picture, confidence: Literal[True], *, value_range: Range | None = None
    ) -> tuple[Labels, Floats]: ...

    def predict(
        self, image: Picture, confidence: bool = False, *, value_range: Range | None = None
    ) -> Labels | tuple[Labels, Floats]:
        """Label every pixel of an image, as ``ppar-dist predict`` does.

        Args:
            image: a file, a Pillow image, or RGB values (H, W, 3) uint8.
            confidence: also give the probability of each label.
            value_range: of an image with more than 8 bits, the values that become black and white.

        Returns:
            Labels (H, W) uint8, of the image's own size: positions in ``classes``. With ``confidence`` also
            probabilities (H, W) float32.

        Raises:
            UserError: it is not such an image.
        """
        photo = _photo(image, arguments.value_range(value_range))
        found: Labels | tuple[Labels, Floats] = self._predicted([photo], confidence)[0]
        return found

    @overload
    def predict_batch(
        self,
        images: Sequence[Picture],
        confidence: Literal[False] = False,
        *,
        value_range: Range | None = None,
    ) -> list[Labels]: ...

    @overload
    def predict_batch(
        self, images: Sequence[Picture], confidence: Literal[True], *, value_range: Range | None = None
    ) -> list[tuple[Labels, Floats]]: ...

    def predict_batch(
        self, images: Sequence[Picture], confidence: bool = False, *, value_range: Range | None = None
    ) -> list[Labels] | list[tuple[Labels, Floats]]:
        """As ``predict``, for several images; the model sees those of one size at once.

        The memory is that of all of them: of many, give a few at a time.

        Raises:
            UserError: one of them is not an image, or this is one image alone.
        """
        if isinstance(images, (str, os.PathLike, Image.Image)) or not isinstance(images, Iterable):
            raise UserError(f"predict_batch takes several images, got {images!r}; put it into a list")
        span = arguments.value_range(value_range)
        return self._predicted([_photo(image, span) for image in images], confidence)

    def features(self, image: Picture, *, value_range: Range | None = None) -> Floats:
        """Dense features of an image in the joint image-text space, not normalised.

        Returns:
            (D, h, w) float32: a vector for each cell of the image as the model sees it, ``size`` pixels on
            its shorter side.

        Raises:
            UserError: it is not such an image.
        """
        seen = model_input(_photo(image, arguments.value_range(value_range)), self.size)[None].to(
            self.device
        )  # (1, 3, H, W)
        with torch.inference_mode():
            return self._segmentor.dense(seen)[0].float().cpu().numpy()

    def evaluate(self, targets: Mapping[str, PathLike], **options: Any) -> Results:
        """Score the model on labelled domains; a run's own results stay as they are.

        Args:
            targets: name in the table to a domain's folder of shards.
            options: keys of the configuration's section ``evaluation`` that replace the run's.

        Raises:
            UserError: a target is unusable, or of other classes.
        """
        folders = arguments.targets(targets)
        return evaluate(self.path, folders, self.device, options=options, weights=self._weights)

    def _predicted(self, photos: list[Image.Image], confidence: bool) -> list[Any]:
        arguments.flag("confidence", confidence)
        inputs = [model_input(photo, self.size) for photo in photos]  # each (3, H, W)
        found: list[Any] = [None] * len(photos)
        for shape in {seen.shape for seen in inputs}:
            chosen = [number for number, seen in enumerate(inputs) if seen.shape == shape]
            logits = logits_of(self._segmentor, torch.stack([inputs[i] for i in chosen]).to(self.device))
            for number, each in zip(chosen, logits, strict=True):
                found[number] = _result(each, photos[number], confidence)
        return found


def _result(logits: Tensor, photo: Image.Image, confidence: bool) -> Labels | tuple[Labels, Floats]:
    size = (photo.height, photo.width)
    labels: Labels = labels_of(logits, size).cpu().numpy()
    return (labels, confidence_of(logits, size).cpu().numpy()) if confidence else labels


def _photo(image: Picture, span: Range | None) -> Image.Image:
    """An RGB photo, upright."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UserError(
                f"an array of an image is (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}; convert it"
            )
        image = Image.fromarray(np.ascontiguousarray(image))
    if not isinstance(image, (str, os.PathLike, Image.Image)):
        raise UserError(
            f"an image is a path, a Pillow image or an array (H, W, 3), got {type(image).__name__}; "
            "convert it"
        )
    try:
        if not isinstance(image, Image.Image):
            return read(Path(image), span)
        if max(image.size) > MAX_RATIO * min(image.size):
            raise UserError(
                f"a side is at most {MAX_RATIO} times the other, got {image.width}x{image.height}; cut it up"
            )
        return photo_rgb(image, span)
    except PictureError as error:
        name = "the image" if isinstance(image, Image.Image) else str(image)
        raise UserError(f"{name} is {arguments.in_python(str(error))}") from None
