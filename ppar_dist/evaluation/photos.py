"""Photos on their way to the model: read within bounds, and grouped by the size that it sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ppar_dist.data.transforms import EvalTransform
from ppar_dist.errors import UserError
from ppar_dist.evaluation.palette_images import strips
from ppar_dist.evaluation.picture_files import Failure, PictureFile
from ppar_dist.pictures import PictureError, Span, open_picture, photo_rgb, photo_size
from ppar_dist.text import one_line

MAX_PIXELS = 1_000_000_000  # of a picture: the user names the files, and 4 GB hold one of this size
MAX_RATIO = 200  # of a picture's sides: what is longer grows to an input of gigabytes
HELD = 100_000_000  # pixels of all photos of a batch, which are held until it is done

T = TypeVar("T")


def model_input(photo: Image.Image, size: int) -> Tensor:
    """What the model sees of an RGB photo: uint8 (3, H, W), ``size`` pixels on the shorter side."""
    pixels = torch.empty(photo.height, photo.width, 3, dtype=torch.uint8)
    for box in strips(photo.size):  # Pillow's own conversion makes two copies of a photo more
        pixels[box[1] : box[3]] = torch.from_numpy(np.array(photo.crop(box)))
    return EvalTransform(size)(pixels.permute(2, 0, 1))


def input_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height of ``model_input``."""
    longer = int(size * max(width, height) / min(width, height))
    return (size, longer) if width <= height else (longer, size)


def groups(files: Sequence[PictureFile], batch: int, size: int) -> Iterator[list[PictureFile]]:
    """Up to ``batch`` pictures of one input size each, of ``HELD`` pixels in all where they are several."""
    waiting: dict[tuple[int, int], list[PictureFile]] = {}
    held: Counter[tuple[int, int]] = Counter()
    for file in files:
        found = attempt(file, partial(_upright_size, file.path)) if batch > 1 else None
        if found is None or isinstance(found, Failure):
            yield [file]  # reading it tells the failure
            continue
        seen = input_size(*found, size)
        pixels = found[0] * found[1]
        if seen in waiting and (len(waiting[seen]) == batch or held[seen] + pixels > HELD):
            yield waiting.pop(seen)
            held.pop(seen)
        waiting.setdefault(seen, []).append(file)
        held[seen] += pixels
    yield from waiting.values()


def attempt(file: PictureFile, work: Callable[[], T]) -> T | Failure:
    """What ``work`` on a picture returns, or why it cannot be done."""
    try:
        return work()
    except PictureError as error:
        return Failure(file.path, f"the picture is {error}")
    except UserError as error:
        return Failure(file.path, str(error))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "alloc" not in str(error).lower():
            raise
        reason = f"not enough memory ({one_line(error)}); give the job more, or smaller pictures or --batch"
        return Failure(file.path, reason)


def _opened(path: Path) -> Image.Image:
    if path.exists() and not path.is_file():
        raise UserError("not a regular file; store the picture in one")  # reading a pipe may never end
    image = open_picture(path, max_pixels=MAX_PIXELS)
    if max(image.size) > MAX_RATIO * min(image.size):
        image.close()
        raise UserError(
            f"a side is at most {MAX_RATIO} times the other, got {image.width}x{image.height}; cut it up"
        )
    return image


def read(path: Path, span: Span | None) -> Image.Image:
    """A photo as RGB, upright; raises UserError where it is none, or beyond the bounds."""
    with _opened(path) as image:
        return photo_rgb(image, span)


def _upright_size(path: Path) -> tuple[int, int]:
    with _opened(path) as image:
        return photo_size(image)
