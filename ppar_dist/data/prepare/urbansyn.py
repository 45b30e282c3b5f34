"""UrbanSyn: 7,539 photorealistic renderings labelled in the 19 training classes of Cityscapes.

Download: https://www.urbansyn.org (https://huggingface.co/datasets/UrbanSyn/UrbanSyn), folders
``rgb`` and ``ss``. Licence: CC BY-SA 4.0; cite Gómez et al., arXiv 2312.12176.

``ss/ss_0001.png`` belongs to ``rgb/rgb_0001.png`` and stores train ids; 19 is void.
"""

from __future__ import annotations

from pathlib import Path

from ppar_dist.class_sets import IGNORE_INDEX
from ppar_dist.data.prepare.finding import images_below
from ppar_dist.data.prepare.layouts import TRAINED
from ppar_dist.data.prepare.legend import VOID, index_labels
from ppar_dist.data.prepare.source import Domains, Pair, Source

NAMES = dict(enumerate((*TRAINED, VOID))) | {IGNORE_INDEX: VOID}
"""Native names by label value."""


def _domains(root: Path) -> Domains:
    SOURCE.require(root / "rgb", root / "ss")
    numbers = [(image.stem.removeprefix("rgb_"), image) for image in images_below(root / "rgb")]
    return {"urbansyn": [Pair(f"urbansyn_{n}", image, root / "ss" / f"ss_{n}.png") for n, image in numbers]}


SOURCE = Source(
    name="urbansyn",
    page="https://huggingface.co/datasets/UrbanSyn/UrbanSyn",
    layout="rgb/rgb_<number>.png and ss/ss_<number>.png",
    whole=("rgb", "ss"),
    domains=_domains,
    legend=index_labels(NAMES),
)
