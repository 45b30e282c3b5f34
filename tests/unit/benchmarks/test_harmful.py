"""Labels spoiled as in life, on real images; sources' shares; and the share of harm taken away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harmful import from_life
from benchmarks.harmful.__main__ import shared_sources
from benchmarks.harmful.from_life import (
    exchange_classes,
    shift_labels,
    spoiled_pixels,
    true_labels,
    wrong_legend,
)
from benchmarks.harmful.spoil import shuffle_domains, spoiled_keys
from benchmarks.harmful.tables import harm_rows, harm_taken_away, separation_table
from benchmarks.harmful.variants import CLEAN, PLAIN, SPOILERS, VARIANTS
from benchmarks.judge import HELD_OUT
from benchmarks.runs import Run
from benchmarks.streets import MAPPINGS, TARGETS, TRACK_KEYS, TRACKS
from ppar_dist.config.load import load_config
from ppar_dist.data.prepare import Options, prepare
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import decode_label
from ppar_dist.training.plan import make_plan
from tests.unit.tiny_run import make_config, make_domain

ROAD, SIDEWALK, BUILDING, VEGETATION, SKY, CAR, IGNORED = 0, 1, 2, 3, 4, 5, 255


@pytest.fixture(scope="module")
def shards(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real images of each domain that is spoiled."""
    out, data = tmp_path_factory.mktemp("shards"), real_data / "data"
    prepare("camvid", data / "camvid", out, "roads6", Options(limit=3))
    prepare("labelmefacade", data / "labelmefacade", out, "roads6", Options(limit=3))
    prepare(
        "folder", data / "idd_lite", out, "roads6", Options(limit=3, mapping=MAPPINGS / "idd_lite_train.yaml")
    )
    return out


def samples(spoiled: DomainIndex, original: DomainIndex) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(spoiled label, true label) of every sample; key, image and truth are those of the original."""
    truth = true_labels(spoiled.path)
    assert len(spoiled) == len(original) == len(truth)
    for number in range(len(original)):
        new, old = spoiled.read(number), original.read(number)
        assert (new.key, new.image) == (old.key, old.image)
        true = decode_label(truth[new.key], "test")
        assert np.array_equal(true, decode_label(old.label, "test"))
        yield decode_label(new.label, "test"), true


def test_two_classes_change_places_and_nothing_else(shards: Path, tmp_path: Path) -> None:
    index = DomainIndex.open(shards / "labelmefacade_train")
    made = exchange_classes(index, tmp_path / "exchanged", "road", "sidewalk")
    wrong = set()
    for number, (label, true) in enumerate(samples(made, index)):
        expected = {ROAD: SIDEWALK, SIDEWALK: ROAD}
        for value in np.unique(true):
            assert set(label[true == value].tolist()) == {expected.get(int(value), int(value))}
        assert np.array_equal(spoiled_pixels(label, true), (true == ROAD) | (true == SIDEWALK))
        if spoiled_pixels(label, true).any():
            wrong.add(index.key(number))
    assert wrong
    assert spoiled_keys(tmp_path / "exchanged") == wrong
    columns = [SIDEWALK, ROAD, *range(2, 6)]
    assert np.array_equal(made.counts, index.counts[:, columns])


@pytest.mark.parametrize(("pixels", "size", "by"), [(8, 180, 16), (16, 180, 32), (8, 120, 24)])
def test_labels_move_as_far_as_training_sees_it(
    shards: Path, tmp_path: Path, pixels: int, size: int, by: int
) -> None:
    index = DomainIndex.open(
        shards / "camvid_Seq05VD"
    )  # 360 rows: 2 or 3 stored pixels per pixel of training
    for label, true in samples(shift_labels(index, tmp_path / "shifted", pixels, size), index):
        assert np.array_equal(label[:, by:], true[:, :-by])
        assert np.all(label[:, :by] == IGNORED)
        assert 0.01 < spoiled_pixels(label, true).mean() < 0.5  # along the edges of things
    assert len(spoiled_keys(tmp_path / "shifted")) == len(index)


def test_under_the_wrong_legend_what_was_ignored_is_vegetation(shards: Path, tmp_path: Path) -> None:
    made = wrong_legend(shards, tmp_path / "idd_lite_wrong_legend", limit=3)
    index = DomainIndex.open(shards / "idd_lite_train")
    for label, true in samples(made, index):
        wrong = spoiled_pixels(label, true)
        assert wrong.any()
        assert np.all(label[wrong] == VEGETATION)
        assert np.all(true[wrong] == IGNORED)
        assert np.array_equal(label[~wrong], true[~wrong])
        assert {BUILDING, VEGETATION}.isdisjoint(np.unique(true))
    assert made.counts[:, VEGETATION].all()
    assert not [path for path in shards.iterdir() if path.name.startswith(".")]  # nothing is left beside


def test_spoiling_again_gives_the_same_domain(shards: Path, tmp_path: Path) -> None:
    index = DomainIndex.open(shards / "camvid_Seq05VD")
    made = [shift_labels(index, tmp_path / name / "shifted", 8, 180).fingerprint for name in "ab"]
    assert made[0] == made[1] != index.fingerprint


def test_a_domain_without_its_record_is_not_whole(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(from_life.np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        shift_labels(DomainIndex.open(shards / "camvid_Seq05VD"), tmp_path / "shifted", 8, 180)
    assert not (tmp_path / "shifted" / "spoiled.json").exists()


def test_shuffled_domains_hold_all_sources_in_their_shares(tmp_path: Path) -> None:
    clean = [make_domain(tmp_path / name, 30, seed) for seed, name in enumerate("ab")]
    spoiled = make_domain(tmp_path / "s", 90, 2)
    folders = [tmp_path / f"part{number}" for number in range(3)]
    shuffle_domains(clean, spoiled, folders, 0.4)
    parts = [[index.key(number) for number in range(len(index))] for index in map(DomainIndex.open, folders)]
    everything = [key for part in parts for key in part]
    assert len(set(everything)) == len(everything) == 100
    assert sum(key.startswith("s_") for key in everything) == 40
    for part in parts:
        assert {key[0] for key in part} == {"a", "b", "s"}
    first = DomainIndex.open(folders[0]).read(0)
    source = {index.name: index for index in (*clean, spoiled)}[first.key[0]]
    originals = {source.key(number): source.read(number) for number in range(len(source))}
    original = originals[first.key[2:]]
    assert (first.image, first.label) == (original.image, original.label)


def test_a_spoiled_source_takes_its_share_and_size_divides_the_rest(tmp_path: Path) -> None:
    for name, size in zip((*CLEAN, "bad"), (10, 20, 30, 7), strict=True):
        make_domain(tmp_path / name, size)
    overrides = [f"data.root={tmp_path}", "data.holdout=0", "ppar.enabled=false"]
    config = load_config(TRACKS["pretrained"], overrides)
    override = shared_sources(config, "bad", 0.4)
    text = tmp_path / "text.npz"
    text.touch()
    given = [*overrides, override, f"text.file={text}"]
    lines = make_plan(load_config(TRACKS["pretrained"], given), 1).lines()
    shares = [line.rpartition(", ")[2] for line in lines if line.startswith("source ")]
    assert shares == ["10.0% of positions", "20.0% of positions", "30.0% of positions", "40.0% of positions"]


def test_the_tables_of_spoilers_and_variants_are_valid() -> None:
    for track, file in TRACKS.items():
        for overrides in VARIANTS.values():
            assert load_config(file, [*TRACK_KEYS[track], *overrides]).augment.random_convolution == 0
    assert all(set(spoiler.related) < set(TARGETS) for spoiler in SPOILERS.values())
    domains = [spoiler.domain for spoiler in SPOILERS.values()]
    assert len(set(domains)) == len(domains)


def judged(folder: Path, seed: int, accuracy: float) -> Run:
    """A run whose every image has two classes, predicted right with this accuracy."""
    right = round(1000 * accuracy)
    counts = np.array([[right, 1000 - right], [1000 - right, right]], np.uint32)
    (folder / "judged").mkdir(parents=True)
    for name in ("dusk", "facade", HELD_OUT):
        np.savez(folder / "judged" / f"{name}.npz", counts=np.stack([counts] * 4))
    return Run("x", seed, folder, (), folder, make_config(folder, folder))


def iou(accuracy: float) -> float:
    return accuracy / (2 - accuracy)


def test_the_share_of_harm_comes_from_means_over_unrelated_targets(tmp_path: Path) -> None:
    def runs(name: str, *accuracies: float) -> dict[int, Run]:
        return {seed: judged(tmp_path / f"{name}{seed}", seed, a) for seed, a in enumerate(accuracies)}

    clean, plain, other = runs("clean", 0.9, 0.9), runs("plain", 0.8, 0.7), runs("other", 0.85, 0.8)
    found = {PLAIN: plain, "other": other}
    (first, second) = harm_rows(found, clean, ["dusk", "facade"], ["facade"], PLAIN)
    harm = iou(0.9) - (iou(0.8) + iou(0.7)) / 2
    gain = (iou(0.85) + iou(0.8) - iou(0.8) - iou(0.7)) / 2
    assert first[0] == PLAIN
    assert first[2].startswith("(")
    assert first[3] == first[1]
    assert first[-2].startswith(f"−{100 * harm:.1f} [")
    assert first[-2].endswith("] to clean sources")
    assert second[-2].startswith(f"{100 * gain:+.1f} [")
    assert second[-1] == f"{100 * gain / harm:.0f} %"
    (_, against) = harm_rows(found, clean, ["dusk"], [], "other")
    assert len(against) == len(second)  # one target less, one difference more
    assert against[-1] == ""


def test_no_harm_is_said() -> None:
    assert harm_taken_away(0.05, 0.1) == pytest.approx(0.5)
    assert harm_taken_away(-0.02, 0.1) == pytest.approx(-0.2)
    assert np.isnan(harm_taken_away(0.05, 0.0))


def test_windows_without_draws_are_left_out_of_means() -> None:
    table = separation_table({("legend", "10%"): {"weight": [[0.5, np.nan], [0.7, 0.9]]}}, 2)
    assert table.splitlines()[-1] == "| legend | 10% | weight | 0.60 | 0.90 |"
