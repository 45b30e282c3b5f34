"""Our scores are those of the evaluator that Cityscapes publishes, on its real images."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ppar_dist.class_sets import class_set
from ppar_dist.data.class_subset import subset_of
from ppar_dist.data.prepare import SOURCES, prepare
from ppar_dist.data.reading import EvalSample, eval_samples
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.evaluation.counting import confusion
from ppar_dist.evaluation.evaluate import target_result

official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")


class _Prediction(NamedTuple):
    logits: Tensor


class Colours(nn.Module):
    """Classes by colour, at random but for their prior: right often enough to have scores."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(19, 3, generator=torch.Generator().manual_seed(1))

    def forward(self, image: Tensor, dense: bool = True) -> _Prediction:
        centred = image.float() / 255 - 0.4
        return _Prediction(torch.einsum("kc,bchw->bkhw", self.weight, centred))


def test_scores_are_those_of_the_official_evaluator(
    tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = real_data / "data" / "cityscapes"
    index = DomainIndex.open(prepare("cityscapes", root, tmp_path / "shards", "cityscapes19")[0])
    native = np.array([official.trainId2label[train_id].id for train_id in range(19)], np.uint8)

    def keep(_: int, sample: EvalSample, predicted: Tensor) -> None:
        Image.fromarray(native[predicted.numpy()]).save(tmp_path / f"{sample.key}.png")

    matrix, count = confusion(Colours(), eval_samples(index, 0, len(index), 128), 19, watch=keep)
    ours = target_result(index, matrix, count, 0, subset_of(index, class_set("cityscapes19")))
    pairs = SOURCES["cityscapes"].domains(root)["cityscapes_train"]
    assert len(pairs) == count > 1
    for name, value in {"evalInstLevelScore": False, "JSONOutput": False, "quiet": True}.items():
        monkeypatch.setattr(official.args, name, value)
    predictions = [str(tmp_path / f"{pair.key}.png") for pair in pairs]
    theirs = official.evaluateImgLists(predictions, [str(pair.label) for pair in pairs], official.args)
    scores = {name: None if np.isnan(score) else score for name, score in theirs["classScores"].items()}
    assert ours.miou == pytest.approx(theirs["averageScoreClasses"], abs=1e-6)
    for name in class_set("cityscapes19").classes:
        assert ours.iou[name] == pytest.approx(scores[name], abs=1e-6), name
    assert sum(score is not None and score > 1e-4 for score in ours.iou.values()) >= 5, (
        "scores worth comparing"
    )
