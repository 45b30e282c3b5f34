"""The bootstrap of differences, against a loop that sums the drawn images one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.bootstrap import MEAN, differences, drawn, interval, mean_iou, per_seed, resamples

SIZES = {"dusk": 5, "facade": 4}
SEEDS, CLASSES = 3, 3


def confusions(seed: int) -> dict[str, np.ndarray]:
    """Small matrices; class 2 is in few images of one target, so that some draws lack it."""
    rng = np.random.default_rng(seed)
    found = {
        name: rng.integers(0, 9, (SEEDS, images, CLASSES, CLASSES)).astype(np.int64)
        for name, images in SIZES.items()
    }
    found["facade"][:, 1:, 2, :] = 0
    found["facade"][:, 1:, :, 2] = 0
    return found


def slow_miou(matrices: list[list[list[int]]]) -> float:
    ious = []
    for k in range(CLASSES):
        hits = sum(matrix[k][k] for matrix in matrices)
        labelled = sum(matrix[k][j] for matrix in matrices for j in range(CLASSES))
        predicted = sum(matrix[j][k] for matrix in matrices for j in range(CLASSES))
        if labelled:
            ious.append(hits / (labelled + predicted - hits))
    return sum(ious) / len(ious) if ious else math.nan


def slow_draw(counts: np.ndarray, seeds: list[int], images: list[int]) -> float:
    return sum(slow_miou([counts[s][i].tolist() for i in images]) for s in seeds) / len(seeds)


def test_draws_equal_a_slow_loop() -> None:
    found, chosen = confusions(0), resamples(SEEDS, SIZES, draws=40)
    assert set(chosen.seeds.sum(1)) == {SEEDS}
    fast = drawn(found, chosen)
    lacking = 0
    for b in range(40):
        seeds = [s for s in range(SEEDS) for _ in range(chosen.seeds[b, s])]
        slow = {}
        for name, counts in found.items():
            images = [i for i in range(SIZES[name]) for _ in range(chosen.images[name][b, i])]
            assert len(images) == SIZES[name]
            lacking += name == "facade" and 0 not in images
            slow[name] = slow_draw(counts, seeds, images)
            assert fast[name][b] == pytest.approx(slow[name], abs=1e-12)
        assert fast[MEAN][b] == pytest.approx(sum(slow.values()) / len(slow), abs=1e-12)
    assert lacking  # a draw without one of the classes was compared, too


def test_the_estimate_is_the_mean_over_seeds_of_all_images() -> None:
    found = confusions(1)
    whole = per_seed(found)
    for name, counts in found.items():
        slow = [slow_miou(counts[s].tolist()) for s in range(SEEDS)]
        assert whole[name].tolist() == pytest.approx(slow, abs=1e-12)
    difference = differences(found, confusions(2), draws=50)
    expected = (per_seed(found)[MEAN] - per_seed(confusions(2))[MEAN]).mean()
    assert difference[MEAN].value == pytest.approx(expected)


def test_identical_runs_differ_by_nothing() -> None:
    for difference in differences(confusions(0), confusions(0), draws=100).values():
        assert (difference.low, difference.value, difference.high) == (0, 0, 0)


def test_noise_is_covered_and_a_constant_shift_is_not() -> None:
    rng = np.random.default_rng(5)
    base = {"dusk": rng.integers(50, 60, (5, 40, 3, 3)) + 400 * np.eye(3, dtype=np.int64)}
    noisy = {"dusk": base["dusk"] + rng.integers(-9, 10, base["dusk"].shape)}
    better = {"dusk": noisy["dusk"] + 30 * np.eye(3, dtype=np.int64)}
    same, shifted = differences(noisy, base)["dusk"], differences(better, base)["dusk"]
    assert same.low < 0 < same.high
    assert 0 < shifted.low < shifted.value < shifted.high
    assert differences(better, base)["dusk"] == shifted  # reproducible


def test_pairing_by_image_takes_the_difficulty_of_images_out() -> None:
    rng = np.random.default_rng(6)
    hits = rng.integers(10, 1000, (1, 30, 1, 1))  # images differ a lot, variants hardly
    one = {"dusk": np.eye(2, dtype=np.int64) * hits + 200}
    other = {"dusk": np.eye(2, dtype=np.int64) * (hits + 5) + 200}
    chosen = resamples(1, {"dusk": 30})
    low, high = interval(drawn(one, chosen)["dusk"])
    difference = differences(other, one)["dusk"]
    assert difference.high - difference.low < (high - low) / 10


def test_a_class_that_never_occurs_is_left_out_and_nothing_is_nan() -> None:
    assert mean_iou(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])) == pytest.approx((3 / 4 + 4 / 5) / 2)
    lacking = np.array([[3, 0, 1], [0, 4, 1], [0, 0, 0]])  # class 2 is predicted and never labelled
    assert mean_iou(lacking) == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert math.isnan(float(mean_iou(np.zeros((3, 3)))))


def test_other_images_are_refused() -> None:
    one = confusions(0)
    with pytest.raises(ValueError, match="same targets, seeds and images"):
        differences(one, {**one, "dusk": one["dusk"][:, 1:]})


def test_draws_of_a_target_do_not_depend_on_the_others() -> None:
    alone, both = resamples(3, {"dusk": 7}), resamples(3, {"facade": 4, "dusk": 7})
    assert np.array_equal(alone.images["dusk"], both.images["dusk"])
    assert np.array_equal(alone.seeds, both.seeds)
