"""What a trained run predicts: a confusion matrix per image, kept as NAME.npz in the run's folder ``judged``.

    counts       (N, K, K) uint32, pixels of N images; rows are labels, columns predictions
    keys         (N,) domain/key of the images
    fingerprint  of the domains
    source       hash of the package's source tree that predicted

Predictions are those of ``ppar-dist evaluate``: whole images, the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ppar_dist.config.load import load_config
from ppar_dist.data.reading import eval_samples
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.sources import check_classes, holdout_range
from ppar_dist.evaluation.confusion import ConfusionMatrix
from ppar_dist.evaluation.counting import confusion
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.run import paths

HELD_OUT = "held-out"  # the held-out part of all sources
Counts = npt.NDArray[np.int64]


def judge(run: Path, targets: Mapping[str, Path], source: str) -> bool:
    """Judge a run on the targets and on its held-out source data, where that was not done.

    A run that keeps averaged weights is judged by those.

    Returns whether there was anything to do.

    Raises:
        UserError: a target, a sample or the run's checkpoint cannot be used.
    """
    torch.set_num_threads(1)  # of this thread
    config = load_config(paths.config_file(run))
    sources = [DomainIndex.open(config.data.root / each.name) for each in config.data.sources]
    parts = {name: [(index := DomainIndex.open(path), range(len(index)))] for name, path in targets.items()}
    parts[HELD_OUT] = [(index, holdout_range(index, config.data.holdout)) for index in sources]
    wanted = {name: _fingerprint(part) for name, part in parts.items()}
    missing = [name for name in parts if _known(run, name) != wanted[name]]
    if not missing:
        return False
    weights = "raw" if config.train.weight_average is None else "averaged"
    segmentor, config, classes, _ = load_segmentor(run, weights=weights)
    for index, _ in (pair for part in parts.values() for pair in part):
        check_classes(index, classes)  # confusions here are of the model's own ids
    for name in missing:
        counts, keys = [], []
        for index, samples in parts[name]:
            for sample in eval_samples(index, samples.start, samples.stop, config.data.size):
                matrix, _ = confusion(segmentor, [sample], classes.num_classes)
                counts.append(_plain(matrix))
                keys.append(f"{index.name}/{sample.key}")
        _save(
            run, name, counts=np.stack(counts), keys=np.array(keys), fingerprint=wanted[name], source=source
        )
    return True


def read_counts(run: Path, name: str) -> Counts:
    """Confusion matrices (N, K, K) of a target or of ``HELD_OUT``."""
    with np.load(_file(run, name), allow_pickle=False) as found:
        counts: Counts = found["counts"].astype(np.int64)
    return counts


def read_source(run: Path, name: str) -> str:
    """The source tree that predicted."""
    with np.load(_file(run, name), allow_pickle=False) as found:
        return str(found["source"])


def stack(runs: Sequence[Path], names: Iterable[str]) -> dict[str, Counts]:
    """Confusion matrices (S, N, K, K) of S runs per target."""
    return {name: np.stack([read_counts(run, name) for run in runs]) for name in names}


def is_judged(run: Path, name: str) -> bool:
    """Whether the run was judged on a target or on ``HELD_OUT``."""
    return _file(run, name).exists()


def _fingerprint(part: list[tuple[DomainIndex, range]]) -> str:
    return " ".join(f"{index.fingerprint}:{samples.start}-{samples.stop}" for index, samples in part)


def _known(run: Path, name: str) -> str | None:
    if not is_judged(run, name):
        return None
    with np.load(_file(run, name), allow_pickle=False) as found:
        return str(found["fingerprint"])


def _plain(matrix: ConfusionMatrix) -> npt.NDArray[np.uint32]:
    return matrix.counts.numpy().astype(np.uint32)


def _save(run: Path, name: str, **arrays: Any) -> None:
    path = _file(run, name)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    temporary.replace(path)


def _file(run: Path, name: str) -> Path:
    return run / "judged" / f"{name}.npz"
