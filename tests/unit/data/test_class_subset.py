"""Targets with some of the model's classes: the scores are those of a loop over pixels."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ppar_dist.class_sets import class_set
from ppar_dist.data.class_subset import ClassSubset, subset_of
from ppar_dist.data.reading import eval_samples, read_sample
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.writer import write_domain
from ppar_dist.errors import DataError, UserError
from ppar_dist.evaluation.compare import compare
from ppar_dist.evaluation.confusion import ConfusionMatrix
from ppar_dist.evaluation.evaluate import evaluate, score, target_result
from ppar_dist.evaluation.labelling import predict_labels
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.report import write_report
from tests.ranks import encode
from tests.unit.tiny_run import CLASSES, make_domain, make_run

PART = """\
classes:
  - {name: car, colour: [0, 0, 9]}
  - {name: road, colour: [0, 9, 0]}
  - {name: sky, colour: [9, 0, 0]}
"""


def domain_of(folder: Path, classes: str, ids: tuple[int, ...]) -> DomainIndex:
    """Noise under random labels, of these ids of the class set and 255."""
    rng = np.random.default_rng(4)
    rows = []
    for number in range(3):
        image = rng.integers(0, 256, (24, 36, 3), dtype=np.uint8)
        label = rng.choice(np.array([*ids, 255], np.uint8), (24, 36))
        rows.append((f"s{number}", encode(image, "JPEG"), encode(label, "PNG"), {}))
    return write_domain(folder, classes, rows)


def test_a_model_of_six_classes_is_scored_on_three(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text(PART)
    index = domain_of(tmp_path / "part", str(tmp_path / "part.yaml"), (1, 2))  # no car is labelled
    make_run(tmp_path, tmp_path / "run")
    make_domain(tmp_path / "all", 2)
    targets = {"part": tmp_path / "part", "all": tmp_path / "all"}
    results = score(tmp_path / "run", targets)
    ids = [CLASSES.classes.index(name) for name in ("car", "road", "sky")]
    counts = np.zeros((6, 6), np.int64)
    segmentor, *_ = load_segmentor(tmp_path / "run")
    for sample in eval_samples(index, 0, 3, 16):
        guess = predict_labels(segmentor, sample.image, tuple(sample.label.shape)).numpy()
        for label, predicted in zip(sample.label.numpy().ravel(), guess.ravel(), strict=True):
            if label != 255:
                counts[ids[label], predicted] += 1
    assert counts[:, [1, 2, 3]].sum() > 0, "the model predicts classes that the target has not"
    found = results.targets["part"]
    assert found.confusion == counts.tolist()
    union = counts.sum(0) + counts.sum(1) - np.diag(counts)
    iou = {
        name: counts[k, k] / union[k] if union[k] else None for name, k in zip(found.iou, ids, strict=True)
    }
    assert list(found.iou) == ["car", "road", "sky"]
    assert found.iou == pytest.approx(iou)
    assert found.miou == pytest.approx(np.mean([value for value in iou.values() if value is not None]))
    assert found.pixel_accuracy == pytest.approx(np.trace(counts) / counts.sum())
    assert results.targets["all"].scored == ""
    said = f"3 of 6 classes ({index.class_set})"
    assert f"part: scored on {said}" in results.table()
    assert json.loads(results.to_json())["targets"]["part"]["scored"] == said
    lines = {row["target"]: row for row in csv.DictReader(io.StringIO(results.to_csv()))}
    assert (lines["part"]["scored"], lines["all"]["scored"]) == (said, "")
    assert lines["part"]["iou building"] == ""
    assert said in write_report(tmp_path / "run").read_text()
    entries = json.loads((tmp_path / "run" / "predictions" / "examples.json").read_text())
    saved = np.asarray(Image.open(tmp_path / "run" / "predictions" / entries[0]["label"]))
    native = np.asarray(read_sample(index, 0).label)
    assert np.array_equal(saved, np.array([*ids, *[255] * 253], np.uint8)[native]), (
        "drawn in the model's colours"
    )


def test_what_all_targets_have_is_written_as_before(tmp_path: Path) -> None:
    make_run(tmp_path, tmp_path / "run")
    make_domain(tmp_path / "all", 2)
    results = evaluate(tmp_path / "run", {"all": tmp_path / "all"})
    assert "scored" not in results.table()
    assert "scored" not in results.to_csv().splitlines()[0]


def test_figures_of_a_small_confusion(tmp_path: Path) -> None:
    """Rows car, road and sky of six: predictions of other classes are misses."""
    (tmp_path / "part.yaml").write_text(PART)
    index = domain_of(tmp_path / "part", str(tmp_path / "part.yaml"), (0, 1, 2))
    counts = torch.zeros(6, 6, dtype=torch.int64)
    counts[5] = torch.tensor([1, 0, 2, 0, 0, 3])  # car: 3 right, 1 road, 2 building
    counts[0] = torch.tensor([4, 5, 0, 0, 0, 1])  # road: 4 right, 5 sidewalk, 1 car
    counts[4] = torch.tensor([0, 0, 0, 6, 2, 0])  # sky: 2 right, 6 vegetation
    found = target_result(index, ConfusionMatrix.of(counts), 1, 0, subset_of(index, CLASSES))
    assert found.iou == pytest.approx({"car": 3 / 7, "road": 4 / 11, "sky": 2 / 8})
    assert found.miou == pytest.approx((3 / 7 + 4 / 11 + 2 / 8) / 3)
    assert found.pixel_accuracy == pytest.approx(9 / 24)


@pytest.mark.parametrize("part", ["cityscapes16", "cityscapes13", "roads6"])
def test_parts_of_cityscapes_are_found_by_name(tmp_path: Path, part: str) -> None:
    whole, index = class_set("cityscapes19"), domain_of(tmp_path / "d", part, (0, 5))
    subset = subset_of(index, whole)
    assert tuple(whole.classes[k] for k in subset.kept) == class_set(part).classes
    assert subset.text.startswith(f"{len(class_set(part).classes)} of 19 classes")
    ids = torch.arange(256, dtype=torch.uint8)
    mapped = subset.model_ids(ids)
    assert mapped[: len(subset.kept)].tolist() == list(subset.kept)
    assert mapped[-1] == 255
    assert torch.equal(ClassSubset(tuple(range(19)), 19).model_ids(ids), ids)


def test_classes_that_the_model_lacks_are_named(tmp_path: Path) -> None:
    whole = domain_of(tmp_path / "d", "cityscapes19", (0, 9))
    with pytest.raises(
        DataError, match=r"lacks terrain, truck, train; prepare it with --classes cityscapes16"
    ):
        subset_of(whole, class_set("cityscapes16"))
    make_run(tmp_path, tmp_path / "run")
    with pytest.raises(UserError, match=r"roads6, lacks wall, fence, .*--classes roads6"):
        evaluate(tmp_path / "run", {"d": tmp_path / "d"})


def test_the_same_names_with_other_labels_are_refused(tmp_path: Path) -> None:
    """As many classes and another meaning is no part: the labels may count otherwise."""
    rows = [f"{{name: {name}, colour: [{k}, 0, 0]}}" for k, name in enumerate(CLASSES.classes)]
    (tmp_path / "mine.yaml").write_text(f"classes: [{', '.join(rows)}]")
    index = domain_of(tmp_path / "d", str(tmp_path / "mine.yaml"), (0,))
    with pytest.raises(DataError, match="--classes roads6"):
        subset_of(index, CLASSES)


def test_scores_of_other_classes_are_not_compared(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text(PART)
    for number, folder in enumerate(("one", "two")):
        place = tmp_path / folder
        make_run(place, place / "run", seed=number)
        domain_of(place / "part", str(tmp_path / "part.yaml") if number else "roads6", (0, 1))
        make_domain(place / "all", 2)
        score(place / "run", {"part": place / "part", "all": place / "all"})
    notes = " ".join(compare([tmp_path / "one" / "run", tmp_path / "two" / "run"]).notes)
    assert "target part" in notes
    assert "its classes differ: 3 of 6 classes" in notes
