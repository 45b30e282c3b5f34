"""Real streets for benchmarks: their folder, their shards, and the tracks that train on them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ppar_dist.data.prepare import Options, prepare

ROOT = Path(__file__).parents[1]
MAPPINGS = Path(__file__).parent / "gain"  # of IDD-Lite
TRACKS = {  # name → configuration
    "pretrained": ROOT / "configs" / "roads_pretrained.yaml",
    "scratch": ROOT / "configs" / "roads.yaml",
}
# Keys of every run of a track: a change of style is part of the variants that name it, for both sides.
TRACK_KEYS: dict[str, tuple[str, ...]] = {"pretrained": (), "scratch": ("augment.random_convolution=0",)}
TARGETS = {"dusk": "camvid_0001TP", "facade": "labelmefacade_test", "idd": "idd_lite_val"}


def real_data() -> Path:
    """The folder named by PPAR_TEST_DATA, which holds ``data`` and ``weights``."""
    folder = os.environ.get("PPAR_TEST_DATA")
    if not folder:
        sys.exit("set PPAR_TEST_DATA to the folder of data/{camvid,labelmefacade,idd_lite} and weights")
    return Path(folder).resolve()


def weights_folder() -> Path:
    """Where files of weights are looked up: $PPAR_WEIGHTS, or ``weights`` of the real data."""
    return Path(os.environ.get("PPAR_WEIGHTS") or Path(os.environ.get("PPAR_TEST_DATA", ".")) / "weights")


def environment() -> dict[str, str]:
    """Of a child process: one thread, and the weights."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PPAR_WEIGHTS": str(weights_folder().resolve())}


def prepare_streets(shards: Path, limit: int | None = None) -> None:
    """CamVid, LabelMeFacade and IDD-Lite as roads6 shards, unless they are there.

    ``limit``: only so many images per domain.
    """
    for domain, name in (("camvid_0001TP", "camvid"), ("labelmefacade_test", "labelmefacade")):
        if not (shards / domain / "domain.json").exists():
            prepare(name, real_data() / "data" / name, shards, "roads6", Options(limit=limit))
    for domain in ("idd_lite_train", "idd_lite_val"):
        prepare_mapped(shards, domain, limit)


def prepare_mapped(shards: Path, domain: str, limit: int | None = None) -> None:
    """A domain of IDD-Lite, as its mapping file says, unless it is there."""
    if not (shards / domain / "domain.json").exists():
        mapping = MAPPINGS / f"{domain}.yaml"
        prepare(
            "folder",
            real_data() / "data" / "idd_lite",
            shards,
            "roads6",
            Options(limit=limit, mapping=mapping),
        )
