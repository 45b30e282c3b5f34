"""The renderer: a pure function, with labels that are where the paint is, and domains that differ."""

from __future__ import annotations

import numpy as np
import pytest

from ppar_dist.class_sets import class_set
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.errors import UserError
from ppar_dist.synthetic import DOMAINS, TARGET_DOMAIN, render, synth
from ppar_dist.synthetic.canvas import BUILDING, CAR, CLASSES, ROAD, SKY, SUPERSAMPLE, VOID, Camera, Canvas

CAMERA = Camera(focal=120.0, center=64.0, horizon=40.0, height=1.5, bend=0.0)
SCENES = 10


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    return {domain: [render(7, domain, i, (90, 120)) for i in range(SCENES)] for domain in DOMAINS}


def inside(polygon: list[tuple[float, float]], u: float, v: float) -> bool:
    """Even-odd rule, one ray to the right."""
    crossings = 0
    for (ua, va), (ub, vb) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if (va > v) != (vb > v) and u < ua + (v - va) / (vb - va) * (ub - ua):
            crossings += 1
    return crossings % 2 == 1


def edge_distance(polygon: list[tuple[float, float]], u: float, v: float) -> float:
    best = np.inf
    for a, b in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        start, step, point = np.array(a), np.array(b) - np.array(a), np.array((u, v))
        t = np.clip((point - start) @ step / (step @ step), 0, 1)
        best = min(best, float(np.linalg.norm(start + t * step - point)))
    return best


def test_a_scene_is_a_pure_function_of_seed_domain_and_number() -> None:
    image, label = render(3, "synth_day", 5, (60, 80))
    again, label_again = render(3, "synth_day", 5, (60, 80))
    assert image.shape == (60, 80, 3)
    assert label.shape == (60, 80)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)
    for other in ((4, "synth_day", 5), (3, "synth_fog", 5), (3, "synth_day", 6)):
        assert (render(*other, (60, 80))[1] != label).mean() > 0.02, other


def test_projection_is_that_of_a_pinhole() -> None:
    rng = np.random.default_rng(0)
    for x, y, z in rng.uniform((-5, 0, 2), (5, 8, 60), (50, 3)):
        u, v = CAMERA.project((x, y, z))
        assert u == pytest.approx(64.0 + 120.0 * x / z)
        assert v == pytest.approx(40.0 + 120.0 * (1.5 - y) / z)


def test_labels_lie_where_the_polygon_was_painted() -> None:
    canvas = Canvas(CAMERA, 96, 128)
    wall = [(-3.0, 0.0, 9.0), (2.0, 0.0, 7.0), (2.0, 2.2, 7.0), (-3.0, 3.0, 9.0)]
    canvas.face(wall, (200, 10, 10), BUILDING)
    canvas.face([(-1, 0.5, 7.5), (0, 0.5, 7.5), (0, 1, 7.5), (-1, 1, 7.5)], (10, 10, 200))  # a detail
    picture, label, distance, _ = canvas.finish()
    outline = [CAMERA.project(point) for point in wall]
    checked = 0
    for row in range(label.shape[0]):
        for column in range(label.shape[1]):
            u, v = column * SUPERSAMPLE, row * SUPERSAMPLE
            if edge_distance(outline, u, v) < 1.5:
                continue
            expected = BUILDING if inside(outline, u, v) else SKY
            assert label[row, column] == expected, (row, column)
            checked += expected == BUILDING
    assert checked > 300
    painted = picture[label == BUILDING]
    assert painted[:, 2].max() > 0.7  # the detail is in the picture, not in the label
    assert (distance[label == BUILDING] == 7.0).all()


def test_what_is_nearer_hides_what_is_farther_in_picture_label_and_light() -> None:
    canvas = Canvas(CAMERA, 96, 128)
    back = [(-4.0, 0.0, 20.0), (4.0, 0.0, 20.0), (4.0, 5.0, 20.0), (-4.0, 5.0, 20.0)]
    front = [(-1.0, 0.0, 5.0), (1.0, 0.0, 5.0), (1.0, 2.2, 5.0), (-1.0, 2.2, 5.0)]
    canvas.face(back, (9, 9, 9), BUILDING, glow=(255, 255, 255))
    canvas.face(front, (250, 250, 250), CAR)
    picture, label, _, light = canvas.finish()
    row, column = (int(value) // SUPERSAMPLE for value in reversed(CAMERA.project((0.0, 1.9, 5.0))))
    assert label[row, column] == CAR
    assert picture[row, column, 0] > 0.9
    assert light[row, column].max() == 0.0
    assert light.max() == 1.0


def test_distance_of_the_ground_follows_from_the_row() -> None:
    canvas = Canvas(CAMERA, 96, 128)
    canvas.ground((-9.0, 9.0), (90, 90, 90), ROAD, near=1.0, far=100.0)
    _, label, distance, _ = canvas.finish()
    row = label.shape[0] - 3
    below = row * SUPERSAMPLE + SUPERSAMPLE / 2 - 40.0
    column = label.shape[1] // 2
    assert label[row, column] == ROAD
    assert distance[row, column] == pytest.approx(1.5 * 120.0 / below)


def test_polygons_are_cut_at_the_near_plane() -> None:
    outline = CAMERA.outline([(-1.0, 0.0, -5.0), (1.0, 0.0, -5.0), (1.0, 0.0, 10.0), (-1.0, 0.0, 10.0)])
    rows = [v for _, v in outline]
    assert len(outline) == 4
    assert min(rows) == pytest.approx(40 + 120 * 1.5 / 10)
    assert CAMERA.outline([(0.0, 0.0, -1.0), (1.0, 0.0, -1.0), (1.0, 1.0, -2.0)]) == []


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_class_occurs_and_no_other_id(scenes: dict, domain: str) -> None:
    share = np.bincount(np.concatenate([label.ravel() for _, label in scenes[domain]]), minlength=256)
    share = share / share.sum()
    assert set(np.flatnonzero(share)) <= {*range(len(CLASSES)), VOID}
    assert (share[: len(CLASSES)] > 0.01).all(), dict(zip(CLASSES, share, strict=False))
    assert share[VOID] < 0.1


def test_the_classes_are_those_of_roads6() -> None:
    assert class_set("roads6").classes == CLASSES


def test_domains_differ_in_light_colour_and_contrast(scenes: dict) -> None:
    mean = {d: np.mean([image.mean() for image, _ in pairs]) for d, pairs in scenes.items()}
    spread = {d: np.mean([image.std() for image, _ in pairs]) for d, pairs in scenes.items()}
    colour = {
        d: np.mean([np.ptp(image.astype(int), axis=2).mean() for image, _ in p]) for d, p in scenes.items()
    }
    assert mean["synth_night"] < 0.5 * min(mean[source] for source in DOMAINS if source != TARGET_DOMAIN)
    assert spread["synth_fog"] < 0.8 * spread["synth_day"]
    assert colour["synth_overcast"] < 0.5 * colour["synth_day"]


def test_fog_hides_what_is_far(scenes: dict) -> None:
    def contrast(domain: str, kind: int) -> float:
        return float(
            np.mean([image[label == kind].std() for image, label in scenes[domain] if (label == kind).any()])
        )

    assert contrast("synth_fog", BUILDING) < 0.75 * contrast("synth_day", BUILDING)


def test_night_lights_shine(scenes: dict) -> None:
    brightest = np.mean([np.quantile(image, 0.999) for image, _ in scenes["synth_night"]])
    middle = np.mean([np.median(image) for image, _ in scenes["synth_night"]])
    assert brightest > 180 > 60 > middle


def test_class_shares_are_alike_in_all_domains(scenes: dict) -> None:
    shares = []
    for domain in DOMAINS:
        counts = np.bincount(np.concatenate([label.ravel() for _, label in scenes[domain]]), minlength=256)
        shares.append(counts[: len(CLASSES)] / counts.sum())
    assert np.ptp(np.array(shares), axis=0).max() < 0.15


def test_synth_writes_domain_folders_that_hold_the_scenes(tmp_path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = lambda *figures: seen.append(figures)  # noqa: E731
    folders = synth(tmp_path, seed=2, samples_per_domain=3, size=(48, 64), progress=report)
    assert [folder.name for folder in folders] == ["synth_day", "synth_overcast", "synth_fog", "synth_night"]
    assert seen[-1] == (TARGET_DOMAIN, 3, 3)
    index = DomainIndex.open(folders[0])
    assert index.class_set == "roads6"
    for number in range(3):
        _, label = render(2, "synth_day", number, (48, 64))
        expected = [(label == k).sum() for k in range(len(CLASSES))]
        np.testing.assert_array_equal(index.counts[number], expected)
    again = synth(tmp_path / "again", seed=2, samples_per_domain=3, size=(48, 64))
    assert DomainIndex.open(again[0]).fingerprint == index.fingerprint


def test_wrong_requests_say_what_to_change(tmp_path) -> None:
    with pytest.raises(UserError, match="at least 1 sample of at least 32x32 pixels, got 1 of 16x8"):
        synth(tmp_path, samples_per_domain=1, size=(8, 16))
