"""The loader: the order's sequence in full batches, whatever the workers, ranks and resumes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ppar_dist.config.data_section import AugmentConfig, RareClassConfig
from ppar_dist.config.schema import Config
from ppar_dist.data.loader import train_loader
from ppar_dist.data.order import Order
from ppar_dist.data.reading import eval_samples, read_sample
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.writer import write_domain
from ppar_dist.data.sources import holdout_range, open_sources, training_shares
from ppar_dist.data.transforms import TrainTransform
from ppar_dist.errors import UserError
from tests.ranks import encode
from tests.unit.street_shards import SIZES, config, drain, flat, scene, scenes, write_domains


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_domains(tmp_path_factory.mktemp("shards"), samples_per_shard=8)


@pytest.mark.parametrize("scale", [(0.75, 1.75), (1.0, 1.0)])
def test_batches_are_what_the_order_says(root: Path, scale: tuple[float, float]) -> None:
    """Of crops that are resized or padded, and of whole pictures."""
    cfg = config(root, {"size": 36, "crop": (36, 48)})
    cfg = cfg.model_copy(update={"augment": AugmentConfig(scale=scale)})
    indexes = open_sources(cfg)
    order = Order(training_shares(cfg, indexes), cfg.seed, cfg.data.block, cfg.data.window)
    transform = TrainTransform(cfg.augment, cfg.data, cfg.seed)
    batches = drain(cfg)
    assert [batch.positions.tolist() for batch in batches] == [list(range(s, s + 6)) for s in range(0, 60, 6)]
    for batch in batches:
        assert (batch.images.dtype, batch.images.shape) == (torch.uint8, (6, 3, 36, 48))
        assert (batch.labels.dtype, batch.labels.shape) == (torch.uint8, (6, 36, 48))
        for i, position in enumerate(batch.positions.tolist()):
            place = order.locate(position)
            decoded = read_sample(indexes[place.domain], place.sample, transform.min_side)
            image, label, colours = transform(decoded.image, decoded.label, position)
            assert (batch.domains[i], batch.samples[i]) == (place.domain, place.sample)
            assert batch.keys[i] == f"{list(SIZES)[place.domain]}_{place.sample}"
            assert image.permute(1, 2, 0).is_contiguous()  # all alike: another order is slow to stack
            assert torch.equal(batch.images[i], image)
            assert torch.equal(batch.labels[i], label)
            assert batch.colours[i] == colours


@pytest.mark.process
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_sequence(root: Path, workers: int) -> None:
    alone = drain(config(root, micro_batch=2))
    together = drain(config(root, {"workers": workers}, micro_batch=2))
    assert [b.positions.tolist() for b in together] == [b.positions.tolist() for b in alone]
    assert flat(together) == flat(alone)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_sequence(root: Path, world: int) -> None:
    alone = flat(drain(config(root)))
    parts = [drain(config(root, micro_batch=1), rank, world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert {p: s for part in parts for p, s in flat(part).items()} == alone
    first = [int(p) for batch in parts[1][: 6 // world] for p in batch.positions]
    assert first == list(range(6 // world, 2 * (6 // world)))


@pytest.mark.parametrize(
    "style", [{}, {"random_convolution": 0.5, "cat_max_ratio": 0.5, "style_exchange": 0.5}]
)
@pytest.mark.parametrize("rare", [False, True])
def test_resume_with_another_batch_and_world(root: Path, style: dict[str, float], rare: bool) -> None:
    rare_classes = RareClassConfig(enabled=rare, temperature=0.5, min_pixels=100)

    def changed(plain: Config) -> Config:
        data = plain.data.model_copy(update={"rare_classes": rare_classes})
        return plain.model_copy(update={"augment": AugmentConfig.model_validate(style), "data": data})

    before, after = changed(config(root)), changed(config(root, global_batch=14, micro_batch=7))
    parts = drain(before, stop=18)
    for rank in range(2):
        parts += drain(after, rank, 2, start=18, stop=60)
    alone = drain(before)
    assert flat(parts) == flat(alone)
    pictures = [
        {int(p): x for b in batches for p, x in zip(b.positions, b.pictures(), strict=True)}
        for batches in (alone, parts)
    ]
    assert all(torch.equal(picture, pictures[1][place]) for place, picture in pictures[0].items())


def test_held_out_samples_are_never_trained_on(root: Path) -> None:
    cfg = config(root, {"holdout": 0.25})
    day, rain = open_sources(cfg)
    assert holdout_range(day, 0.25) == range(15, 20)
    assert holdout_range(rain, 0.25) == range(8, 11)
    assert holdout_range(rain, 0.0) == range(11, 11)
    assert [share.size for share in training_shares(cfg, [day, rain])] == [15, 8]
    seen = {
        (d, s) for batch in drain(cfg, stop=180) for d, s in zip(batch.domains, batch.samples, strict=True)
    }
    assert {(int(d), int(s)) for d, s in seen} == {(0, s) for s in range(15)} | {(1, s) for s in range(8)}


def test_weights_come_from_sizes_or_from_the_configuration(root: Path) -> None:
    given = {"holdout": 0, "sources": [{"name": "day", "weight": 1}, {"name": "rain", "weight": 3}]}
    for data, expected in (({"holdout": 0}, [20.0, 11.0]), (given, [1.0, 3.0])):
        cfg = config(root, data)
        assert [share.weight for share in training_shares(cfg, open_sources(cfg))] == expected


@pytest.mark.process
def test_loading_leaves_the_global_random_state(root: Path) -> None:
    before = torch.get_rng_state()
    drain(config(root, {"workers": 1}))
    assert torch.equal(before, torch.get_rng_state())


def test_batches_move_whole(root: Path) -> None:
    batch = drain(config(root), stop=6)[0]
    moved = batch.to("cpu")
    assert moved.images.is_contiguous()
    assert torch.equal(moved.images, batch.images)
    assert moved.keys == batch.keys


def test_evaluation_keeps_labels_native(root: Path) -> None:
    day = DomainIndex.open(root / "day")
    found = list(eval_samples(day, 3, 6, size=18))
    assert [(each.sample, each.key) for each in found] == [(n, f"day_{n}") for n in (3, 4, 5)]
    for each in found:
        assert (each.image.dtype, each.image.shape) == (torch.uint8, (3, 18, 24))
        expected = Image.open(io.BytesIO(scene(each.sample)[1]))
        assert np.array_equal(each.label.numpy(), np.asarray(expected))


def test_big_images_are_decoded_at_a_fraction(tmp_path: Path) -> None:
    """Never below the side asked for, and the same picture as a full decode scaled down."""
    image, label = scene(1, 144, 192)
    index = write_domain(tmp_path / "big", "roads6", [("a", image, label, {})])
    full = read_sample(index, 0)
    small = read_sample(index, 0, min_side=30)
    assert full.image.shape == (3, 144, 192)
    assert (small.image.shape, small.label.shape) == ((3, 36, 48), (144, 192))
    assert read_sample(index, 0, min_side=100).image.shape == (3, 144, 192)
    reference = torch.nn.functional.avg_pool2d(full.image.float(), 4)
    assert (small.image.float() - reference).abs().mean() < 3


def test_pixels_are_those_of_pillow(tmp_path: Path) -> None:
    image, label = scene(2)
    index = write_domain(tmp_path / "d", "roads6", [("a", image, label, {})])
    expected = np.asarray(Image.open(io.BytesIO(image)))
    assert np.array_equal(read_sample(index, 0).image.permute(1, 2, 0).numpy(), expected)


def test_grey_pictures_become_rgb(tmp_path: Path) -> None:
    grey = np.full((36, 48), 77, np.uint8)
    index = write_domain(tmp_path / "d", "roads6", [("a", encode(grey, "JPEG"), scene(0)[1], {})])
    assert (read_sample(index, 0).image == 77).all()


def test_wrong_class_set_names_both(root: Path) -> None:
    cfg = config(root, {"classes": "camvid11"})
    with pytest.raises(
        UserError, match=r"domain day has class set roads6 .*the run has camvid11 .*--classes"
    ):
        open_sources(cfg)


@pytest.mark.local_data("the message is that of a folder")
def test_missing_domain_says_what_to_run(root: Path) -> None:
    with pytest.raises(UserError, match=r"no domain folder .*fog; run `ppar-dist prepare`"):
        open_sources(config(root, {"sources": ["day", "fog"]}))


def test_impossible_ranks(root: Path, tmp_path: Path) -> None:
    cfg = config(root)
    with pytest.raises(
        UserError, match=r"train\.global_batch is a multiple of the number of ranks, got 6 on 4"
    ):
        train_loader(cfg, open_sources(cfg), 0, 4, 0, 6)
    write_domain(tmp_path / "tiny", "roads6", scenes("tiny", 2))
    cfg = config(tmp_path, {"sources": ["tiny"], "holdout": 0})
    with pytest.raises(UserError, match=r"3 ranks but only 2 training samples; use at most 2 ranks"):
        train_loader(cfg, open_sources(cfg), 0, 3, 0, 6)
    with pytest.raises(ValueError, match=r"not a whole number of global batches of 6"):
        train_loader(cfg, open_sources(cfg), 0, 1, 0, 7)
    cfg = config(tmp_path, {"sources": ["tiny"], "holdout": 0.9})
    with pytest.raises(UserError, match=r"domain tiny has 2 samples and data\.holdout=0\.9 leaves none"):
        training_shares(cfg, open_sources(cfg))
