"""Predictions for anybody's images: palette PNG, blended overlay and a legend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ppar_dist.data.transforms import EvalTransform
from ppar_dist.errors import UserError
from ppar_dist.evaluation.evaluate import predict_labels
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.evaluation.palette_images import legend_image, overlay_image, palette_image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
LEGEND = "legend.png"


@dataclass(frozen=True)
class PredictedImage:
    """The files written for one image."""

    image: Path
    labels: Path
    overlay: Path

    def __str__(self) -> str:
        return f"{self.image}: {self.labels}, {self.overlay}"


def predict(
    path: Path,
    images: Sequence[Path],
    out: Path,
    device: torch.device | str = "cpu",
    which: str = "latest",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[PredictedImage]:
    """Segment images with a run or checkpoint.

    ``out`` gets ``<name>.png`` (indexed, pixel values are class ids, the image's own size),
    ``<name>_overlay.jpg`` for each image, and ``legend.png``.

    Args:
        path: a run folder or a checkpoint folder.
        images: image files, or folders of them (not searched deeper).
        out: a folder, created here.
        device: where the model runs.
        which: ``latest`` or ``best`` (on held-out source data), for a run folder.
        overwrite: whether ``out`` may hold files already.
        progress: called with (images done, images in all).

    Raises:
        UserError: a file is missing or not an image, ``out`` is in use, or the checkpoint is unusable.
            All images are checked before the first is segmented.
    """
    files = image_files(images)
    for file in files:
        open_image(file)
    _claim(out, overwrite)
    segmentor, config, classes, _ = load_segmentor(path, device, which)
    legend_image(classes).save(out / LEGEND)
    written = []
    for name, file in zip(_names(files), files, strict=True):
        photo = open_image(file)
        labels = segment(segmentor, photo, config.data.size, device)
        result = PredictedImage(file, out / f"{name}.png", out / f"{name}_overlay.jpg")
        palette_image(labels, classes).save(result.labels)
        overlay_image(photo, labels, classes).save(result.overlay, quality=92)
        written.append(result)
        if progress is not None:
            progress(len(written), len(files))
    return written


def segment(
    segmentor: torch.nn.Module, photo: Image.Image, size: int, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Class ids (H, W) uint8 of an RGB picture, seen by the model at ``size`` pixels on the shorter side."""
    image = EvalTransform(size)(photo)  # (3, h, w)
    labels = predict_labels(segmentor, image.to(device), (photo.height, photo.width))
    return labels.to(torch.uint8).cpu().numpy()


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files meant by a list of files and folders, in order; raises UserError."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(item for item in path.iterdir() if item.suffix.lower() in SUFFIXES)
            if not inside:
                raise UserError(
                    f"folder {path} holds no images ({', '.join(sorted(SUFFIXES))}); give another"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"no image at {path}; check the path")
    if not found:
        raise UserError("no images given; name at least one file or folder")
    return found


def open_image(path: Path) -> Image.Image:
    """Read an image as RGB, upright (EXIF orientation applied); raises UserError if it is not one."""
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image that Pillow can read; convert it to JPEG or PNG") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read image {path}: {error}; replace or leave out the file") from None


def _claim(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out is a folder, but {out} is a file; give another path")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(f"--out {out} is not empty; empty it, or give a new folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make folder {out}: {error.strerror}; give another --out") from None


def _names(files: Sequence[Path]) -> list[str]:
    """File stems, told apart by a number where two images (or the legend) would share one."""
    taken = {Path(LEGEND).stem}
    names = []
    for file in files:
        name, number = file.stem, 1
        while name in taken:
            number += 1
            name = f"{file.stem}-{number}"
        taken.add(name)
        names.append(name)
    return names
