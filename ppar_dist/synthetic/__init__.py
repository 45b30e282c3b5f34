"""Street scenes rendered on the CPU with exact labels: three source domains and an unseen night.

A scene is a pure function of (seed, domain, number). Class set ``roads6``; lamps and people belong
to none of its classes and are labelled 255. See ``styles`` for what tells the domains apart.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppar_dist.data.shards.writer import ShardSample, write_domain
from ppar_dist.errors import UserError
from ppar_dist.synthetic import atmosphere
from ppar_dist.synthetic.canvas import SUPERSAMPLE, Canvas
from ppar_dist.synthetic.street import draw_street, plan
from ppar_dist.synthetic.styles import DOMAINS, STYLES, TARGET_DOMAIN

__all__ = ["CLASS_SET", "DOMAINS", "TARGET_DOMAIN", "render", "synth"]

CLASS_SET = "roads6"
_LONGEST_SIDE = 4096  # of a scene: some 4 GB of memory while it is drawn

Progress = Callable[[str, int, int], None]  # domain, samples done, samples in all


def synth(
    out: Path | str,
    seed: int = 0,
    samples_per_domain: int = 200,
    size: tuple[int, int] = (180, 240),
    progress: Progress | None = None,
) -> list[Path]:
    """Render the domains and write each as a folder of shards; about 30 ms a scene of 180 × 240.

    Args:
        out: parent folder of the domain folders; a domain that is there already is replaced.
        seed: at least 0; together with domain and number it determines every pixel.
        samples_per_domain: scenes per domain, at least 1.
        size: height and width in pixels, 32 to 4096 each.
        progress: called after each scene.

    Raises:
        UserError: a size, count or seed is out of range.
    """
    if seed < 0:
        raise UserError(f"a seed is at least 0, got {seed}; choose another")
    if max(size) > _LONGEST_SIDE:
        wanted = f"{size[1]}x{size[0]} (width x height)"
        raise UserError(f"scenes are at most {_LONGEST_SIDE} pixels high and wide, got {wanted}; lower them")
    if samples_per_domain < 1 or min(size) < 32:
        raise UserError(
            f"at least 1 sample of at least 32x32 pixels, got {samples_per_domain} of "
            f"{size[1]}x{size[0]} (width x height); raise them"
        )
    folders = []
    for name in DOMAINS:
        folder = Path(out) / name
        write_domain(folder, CLASS_SET, _samples(seed, name, samples_per_domain, size, progress))
        folders.append(folder)
    return folders


def _samples(
    seed: int, domain: str, count: int, size: tuple[int, int], progress: Progress | None
) -> Iterator[ShardSample]:
    for number in range(count):
        image, label = render(seed, domain, number, size)
        packed, marks = io.BytesIO(), io.BytesIO()
        Image.fromarray(image).save(packed, "JPEG", quality=92)
        Image.fromarray(label).save(marks, "PNG")
        metadata = {"dataset": "synthetic", "seed": seed, "domain": domain, "number": number}
        yield ShardSample(f"{domain}_{number:06d}", packed.getvalue(), marks.getvalue(), metadata)
        if progress is not None:
            progress(domain, number + 1, count)


def render(
    seed: int, domain: str, number: int, size: tuple[int, int] = (180, 240)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Scene ``number`` of a domain: image (H, W, 3) uint8 and label (H, W) uint8 in roads6 ids."""
    style = STYLES[domain]
    rng = np.random.default_rng([seed, zlib.crc32(domain.encode()), number])
    height, width = size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE
    street, camera = plan(rng, height, width)
    canvas = Canvas(camera, height, width)
    atmosphere.paint_sky(canvas, rng, style)
    rain = bool(rng.random() < style.rain)
    draw_street(canvas, rng, style, street, rain)
    picture, label, distance, light = canvas.finish()
    image = atmosphere.illuminate(atmosphere.surface(rng, picture, label), label, distance, camera, style)
    glowing = style.lamps or style.lit_windows > 0
    if glowing:
        image = atmosphere.bloom(image, light, 0.55 if min(style.light) < 0.6 else 0.2)
    if rain:
        image = atmosphere.wet_road(image, label, camera)
    if style.fog:
        image = atmosphere.veil(image, distance, rng.uniform(*style.fog), style.fog_colour)
    if rain:
        image = atmosphere.streaks(rng, image)
    return atmosphere.develop(rng, image, style), label
