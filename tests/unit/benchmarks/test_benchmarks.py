"""The benchmarks' own arithmetic: what they spoil, and how they score it."""

from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.gain import ceiling
from benchmarks.gain.distance import distances, domain_centroids
from benchmarks.harmful.pictures import PICTURES
from benchmarks.harmful.separation import auroc, chart, course, mean_known, read_draws, weight_ratio
from benchmarks.harmful.spoil import derangement, irrelevant_domain, permute_labels, spoiled_keys
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import decode_label
from ppar_dist.evaluation.load import load_segmentor
from tests.ranks import write_blocks_domain
from tests.unit.tiny_run import make_domain, make_run


def labels_of(index: DomainIndex) -> dict[str, np.ndarray]:
    return {index.key(i): decode_label(index.read(i).label, "test") for i in range(len(index))}


def images_of(index: DomainIndex) -> dict[str, bytes]:
    return {index.key(i): index.read(i).image for i in range(len(index))}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> DomainIndex:
    return make_domain(tmp_path_factory.mktemp("clean") / "street", 20)


def test_exactly_the_recorded_third_has_permuted_labels(clean: DomainIndex, tmp_path: Path) -> None:
    spoiled = permute_labels(clean, tmp_path / "spoiled")
    before, after = labels_of(clean), labels_of(spoiled)
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    assert before.keys() == after.keys()
    assert changed == spoiled_keys(tmp_path / "spoiled")
    assert len(changed) == round(20 / 3)
    assert images_of(spoiled) == images_of(clean)


def test_a_permuted_label_moves_every_class_and_keeps_ignored_pixels(
    clean: DomainIndex, tmp_path: Path
) -> None:
    before, after = labels_of(clean), labels_of(permute_labels(clean, tmp_path / "spoiled"))
    record = json.loads((tmp_path / "spoiled" / "spoiled.json").read_text())
    for key, permutation in record["permutations"].items():
        for old, new in {*zip(before[key].ravel().tolist(), after[key].ravel().tolist(), strict=True)}:
            assert new == (255 if old == 255 else permutation[old])
            assert old == 255 or new != old
    drawn = [tuple(permutation) for permutation in record["permutations"].values()]
    assert len(set(drawn)) > 1  # one per image, not one for all


def test_spoiling_is_a_function_of_seed_and_key(clean: DomainIndex, tmp_path: Path) -> None:
    one, same, other = (
        permute_labels(clean, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one.fingerprint == same.fingerprint
    assert spoiled_keys(tmp_path / "a") == spoiled_keys(tmp_path / "b") != spoiled_keys(tmp_path / "c")
    assert other.fingerprint != one.fingerprint


def test_an_irrelevant_domain_is_all_spoiled_and_reproducible(tmp_path: Path) -> None:
    index = irrelevant_domain(tmp_path / "a", "roads6", 7, (24, 32))
    again = irrelevant_domain(tmp_path / "b", "roads6", 7, (24, 32))
    assert index.fingerprint == again.fingerprint
    assert spoiled_keys(tmp_path / "a") == set(labels_of(index))
    assert len(set(images_of(index).values())) == 7
    assert all(np.unique(label).size > 1 for label in labels_of(index).values())
    # labels of images of one kind say nothing about the image: no two agree
    assert not np.array_equal(*[labels_of(index)[index.key(i)] for i in (0, len(PICTURES))])


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.__name__)
def test_a_picture_is_rgb_and_not_blank(picture) -> None:
    image = picture(np.random.default_rng(0), 20, 30)
    assert image.shape == (20, 30, 3)
    assert image.dtype == np.uint8
    assert image.std() > 1
    Image.fromarray(image).save(io.BytesIO(), "JPEG")


def test_derangements_are_uniform() -> None:
    rng = np.random.default_rng(0)
    drawn = [tuple(derangement(4, rng).tolist()) for _ in range(900)]
    allowed = [p for p in itertools.permutations(range(4)) if all(p[i] != i for i in range(4))]
    assert set(drawn) == set(allowed)  # 9 of them
    assert max(drawn.count(p) for p in allowed) < 1.5 * 900 / len(allowed)


def pairs(positive: list[float], negative: list[float]) -> float:
    won = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return won / (len(positive) * len(negative))


@pytest.mark.parametrize("seed", range(8))
def test_auroc_counts_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = int(rng.integers(1, 30))  # few: many ties
    positive = rng.integers(0, levels, int(rng.integers(1, 25))).astype(float).tolist()
    negative = (rng.integers(0, levels, int(rng.integers(1, 25))) - 1.0).tolist()
    assert auroc(positive, negative) == pytest.approx(pairs(positive, negative), abs=1e-12)


def test_auroc_of_nothing_is_nan() -> None:
    assert math.isnan(auroc([], [1.0]))
    assert math.isnan(auroc([1.0], []))


def write_draws(run: Path) -> None:
    """Four steps; the spoiled sample `bad` of domain a begins above the clean ones and ends below."""
    (run / "metrics").mkdir(parents=True)
    lines = []
    for step, (bad, weight) in enumerate([(-1.0, 1.0), (-1.0, 1.0), (-9.0, 0.2), (-9.0, 0.2)], start=1):
        rows = [
            ("a", "bad", weight, bad),
            ("a", "good", 1.2, -2.0 - step / 10),
            ("b", "bad", 1.0, -3.0),  # the same key in another domain is clean
            ("b", "blank", 1.0, None),
        ]
        samples = [dict(zip(("domain", "key", "weight", "reliability"), row, strict=True)) for row in rows]
        lines.append(json.dumps({"step": step, "samples": samples}))
    (run / "metrics" / "samples.jsonl").write_text("\n".join(lines) + "\n")


def test_the_course_of_the_separation(tmp_path: Path) -> None:
    write_draws(tmp_path)
    draws = read_draws(tmp_path, {"a": {"bad"}, "b": set()})
    assert draws.spoiled.sum() == 4
    assert course(draws, draws.reliability, 2) == [0.0, 1.0]  # the draw without a class is left out
    assert course(draws, draws.weight, 2) == [pytest.approx((1 + 0.5 + 0.5) / 3), 1.0]
    assert course(draws, draws.weight, 2, within="a") == [1.0, 1.0]
    assert weight_ratio(draws, 2) == pytest.approx([1 / (3.2 / 3), 0.2 / (3.2 / 3)])


def test_a_window_without_spoiled_draws_is_left_out_of_means(tmp_path: Path) -> None:
    write_draws(tmp_path)
    draws = read_draws(tmp_path, {})
    assert all(math.isnan(value) for value in weight_ratio(draws, 2) + course(draws, draws.weight, 2))
    assert mean_known([0.5, math.nan, 1.0]) == 0.75
    assert math.isnan(mean_known([math.nan]))


@pytest.mark.process  # matplotlib's first start on a machine asks fc-list for the fonts
def test_a_chart_is_drawn_where_matplotlib_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert chart({"scenario": {"weight": [[0.5, math.nan], [0.6, 1.0]]}}, tmp_path / "new" / "chart.png")
    with Image.open(tmp_path / "new" / "chart.png") as image:
        assert image.format == "PNG"


def test_distances_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    centroids = torch.nn.functional.normalize(
        torch.randn(5, 4, 6, generator=generator), dim=2
    )  # 3 + 2 domains
    seen = torch.ones(5, 4, dtype=torch.bool)
    seen[3:, 0] = False  # no target has class 0
    seen[1:3, 1] = False  # one source has class 1
    points = centroids.double().numpy()

    def apart(m: int, k: int, n: int, j: int) -> float:
        return float(np.sqrt(((points[m, k] - points[n, j]) ** 2).sum()))

    between, to_target, classes = [], [], []
    for k in range(4):
        inside = [apart(m, k, n, k) for m in range(3) for n in range(m) if seen[m, k] and seen[n, k]]
        across = [apart(m, k, n, k) for m in range(3) for n in (3, 4) if seen[m, k] and seen[n, k]]
        between += [max(inside)] if inside else []
        to_target += [max(across)] if across else []
    for m, k, j in itertools.product(range(5), range(4), range(4)):
        if k < j and seen[m, k] and seen[m, j]:
            classes.append(apart(m, k, m, j))
    found = distances(centroids, seen, sources=3)
    assert found.sources == pytest.approx(np.mean(between), rel=1e-5)
    assert found.target == pytest.approx(np.mean(to_target), rel=1e-5)
    assert found.classes == pytest.approx(np.mean(classes), rel=1e-5)
    assert found.target_by_classes == pytest.approx(np.mean(to_target) / np.mean(classes), rel=1e-5)


@pytest.mark.parametrize("level", ["trunk", "decoder"])
def test_centroids_of_a_run_are_unit_vectors_of_the_classes_there_are(tmp_path: Path, level: str) -> None:
    make_run(tmp_path / "data", tmp_path / "run")
    segmentor, config, _, _ = load_segmentor(tmp_path / "run")
    index = DomainIndex.open(tmp_path / "data" / "a")
    centroids, seen = domain_centroids(segmentor, index, config.data.size, 0.2, level, limit=None)
    assert len(seen) == 6
    assert seen.any()
    assert not seen[5]  # no car in these labels
    norms = centroids.norm(dim=1)
    assert torch.allclose(norms, seen.float(), atol=1e-5)


def test_a_classifier_that_knows_the_target_is_better_on_the_half_it_did_not_see(tmp_path: Path) -> None:
    make_run(tmp_path, tmp_path / "run", classifier="linear")
    write_blocks_domain(tmp_path / "blocks", samples=8, seed=0, rare_in=None)
    own, fitted = ceiling.measure(tmp_path / "run", {"blocks": DomainIndex.open(tmp_path / "blocks")})[
        "blocks"
    ]
    assert fitted > own + 5, (own, fitted)
