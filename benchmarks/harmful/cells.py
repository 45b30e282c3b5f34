"""How well trust tells spoiled cells from clean ones: alone, and times what the judge says of the cell."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from benchmarks.harmful.from_life import TRUTH, true_labels
from benchmarks.harmful.separation import auroc
from benchmarks.harmful.spoil import spoiled_keys
from ppar_dist.class_sets import class_set
from ppar_dist.config.schema import Config
from ppar_dist.data.reading import eval_samples
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import decode_label
from ppar_dist.evaluation.survey import TowerFeatures, evenly, labels_of_cells, survey_sources
from ppar_dist.models.backbone import build_backbone
from ppar_dist.ppar.trust import reliability


def cell_auroc(config: Config) -> tuple[float, float]:
    """AUROC of clean over spoiled cells of a run's sources: by trust, by trust times p_y / max p.

    A cell is spoiled where its label is not that of the true label map, or its image is on the list of
    spoiled ones and no true map is kept.

    Args:
        config: of a run with a spoiled source.
    """
    classes = class_set(config.data.classes).num_classes
    folders = [Path(str(config.data.root)) / source.name for source in config.data.sources]
    indexes = [DomainIndex.open(folder) for folder in folders]
    torch.manual_seed(config.seed)
    backbone = build_backbone(config.model.backbone).eval()
    look, survey = TowerFeatures(backbone), survey_sources(backbone, config, indexes, classes)
    scores: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for number, (folder, index) in enumerate(zip(folders, indexes, strict=True)):
        keys, true = spoiled_keys(folder), true_labels(folder) if (folder / TRUTH).exists() else None
        for at in evenly(len(index), config.ppar.reweighting.trust.images):
            for sample in eval_samples(index, at, at + 1, config.data.size):
                seen = look(sample.image)
                grid, purity = (seen.shape[1], seen.shape[2]), config.ppar.min_purity
                given = labels_of_cells(sample, grid, classes, purity).flatten()
                spoiled = torch.full_like(given, sample.key in keys, dtype=torch.bool)
                if true is not None and sample.key in keys:
                    label = torch.from_numpy(decode_label(true[sample.key], sample.key).copy())
                    right = labels_of_cells(sample._replace(label=label), grid, classes, purity)
                    spoiled = right.flatten() != given
                logits = survey.judges[number].log_probabilities(seen.flatten(1).t())
                labels = given.clamp(max=classes - 1)
                cell = reliability(logits.clamp_min(-1e3), labels).exp()
                trust = survey.trust[number][labels]
                for i in (given < classes).nonzero().flatten().tolist():
                    scores[bool(spoiled[i])].append((float(trust[i]), float(trust[i] * cell[i])))
    if not (scores[True] and scores[False]):
        return math.nan, math.nan
    clean, bad = (list(zip(*scores[which], strict=True)) for which in (False, True))
    return auroc(clean[0], bad[0]), auroc(clean[1], bad[1])
