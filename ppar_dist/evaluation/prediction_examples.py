"""A few predictions of each target beside their labels, kept in a run for its report.

::

    <run>/predictions/
      examples.json               list of {target, key, accuracy, image, label, prediction}
      000-image.jpg  000-label.png  000-prediction.png
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ppar_dist.checkpoint import write_atomically
from ppar_dist.class_sets import IGNORE_INDEX, ClassSet
from ppar_dist.distributed.world import World
from ppar_dist.evaluation.palette_images import palette_image, write_picture
from ppar_dist.run import paths

PER_TARGET = 4


class ExampleFolder:
    """Writes examples, on each rank those of its samples.

    ``close`` publishes the list of all, which replace the examples of an earlier evaluation. Making the
    folder and ``close`` are collective.
    """

    def __init__(self, folder: Path, classes: ClassSet, world: World) -> None:
        self.folder, self.classes, self.world = folder, classes, world
        self._entries: list[tuple[int, dict[str, Any]]] = []
        world.on_main(lambda: _emptied(folder))

    def add(
        self, number: int, target: str, key: str, image: Tensor, label: Tensor, predicted: Tensor
    ) -> None:
        """Keep one sample.

        Args:
            number: of the example among those of all targets, which no other rank gives.
            target: the target's name in the table.
            key: the sample's key; shown, and never part of a file name, because shards are not trusted.
            image: (3, h, w) uint8.
            label: (H, W) class ids, 255 where ignored.
            predicted: (H, W) class ids.
        """
        stem = f"{number:03d}"
        truth, guess = label.numpy().astype(np.uint8), predicted.numpy().astype(np.uint8)
        valid = truth != IGNORE_INDEX
        accuracy = float((truth == guess)[valid].mean()) if valid.any() else None
        files = {
            kind: f"{stem}-{kind}.{'jpg' if kind == 'image' else 'png'}"
            for kind in ("image", "label", "prediction")
        }
        photo = Image.fromarray(image.permute(1, 2, 0).numpy())
        write_picture(photo, self.folder / files["image"], quality=88)
        write_picture(palette_image(truth, self.classes), self.folder / files["label"])
        write_picture(palette_image(guess, self.classes), self.folder / files["prediction"])
        self._entries.append((number, {"target": target, "key": key, "accuracy": accuracy, **files}))

    def close(self) -> None:
        """Write the list; until then a reader sees no examples."""
        found = [entry for entries in self.world.gather(self._entries) for entry in entries]
        entries = [entry for _, entry in sorted(found, key=lambda item: item[0])]
        text = json.dumps(entries, indent=1)
        self.world.on_main(lambda: write_atomically(self.folder / paths.EXAMPLES, text))


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def spread(total: int, count: int = PER_TARGET) -> set[int]:
    """``count`` sample numbers spread evenly over ``total`` samples (all of them when there are fewer)."""
    return {min(total - 1, (2 * i + 1) * total // (2 * count)) for i in range(count)} if total else set()
