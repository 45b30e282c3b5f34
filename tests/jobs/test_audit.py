"""``ppar-dist audit`` on a real run, one of whose sources is labelled by another legend."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppar_dist.class_sets import class_set
from ppar_dist.data.reading import eval_samples
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.writer import write_domain
from tests.ranks import encode, run_command, run_ranks, tiny_config, write_blocks_domain, write_config

CLASSES = class_set("roads6")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources with right labels, and one whose road is called sidewalk, and the other way round."""
    root = tmp_path_factory.mktemp("audit")
    for number, name in enumerate(("left", "right", "third", "clean")):
        write_blocks_domain(root / name, samples=8, seed=number, rare_in=None)
    rows = []
    for sample in eval_samples(index := DomainIndex.open(root / "clean"), 0, len(index), 64):
        label = sample.label.numpy()
        exchanged = np.where(label == 0, 1, np.where(label == 1, 0, label)).astype(np.uint8)
        pixels = sample.image.permute(1, 2, 0).numpy()
        rows.append((sample.key, encode(pixels, "JPEG"), encode(exchanged, "PNG"), {}))
    write_domain(root / "wrong", "roads6", rows)
    tree = tiny_config(root, root / "run", train={"steps": 150, "global_batch": 6, "log_every": 50})
    tree["data"]["sources"] = ["left", "right", "third", "wrong"]
    tree["ppar"]["reweighting"]["cells"] = {"enabled": True, "tolerance": 0.0}
    run_ranks(["train", str(write_config(root / "config.yaml", tree))], 1)
    return root / "run"


def test_the_wrong_source_is_found_and_its_regions_are_drawn(run: Path) -> None:
    done = run_command(["audit", str(run), "--regions", "12", "--json"])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((run / "audit" / "regions.json").read_text())
    assert found["images"] == {"left": 8, "right": 8, "third": 8, "wrong": 8}
    for label in ("road", "sidewalk"):
        assert found["weights"]["wrong"][label] < 0.5 < found["weights"]["left"][label]
    assert 1 <= len(found["regions"]) <= 12
    losses = [region["pixels"] * (1 - region["weight"]) for region in found["regions"]]
    assert losses == sorted(losses, reverse=True)
    first = found["regions"][0]
    assert first["domain"] == "wrong"
    assert {first["class"], first["judged_as"]} == {"road", "sidewalk"}
    for region in found["regions"]:
        left, top, right, bottom = region["box"]
        assert 0 <= left < right <= 96
        assert 0 <= top < bottom <= 64
        assert region["pixels"] <= (right - left) * (bottom - top)
        assert region["weight"] < 0.5
        with Image.open(run / "audit" / region["picture"]) as picture:
            assert picture.width == 2 * 72  # image and label map at data.size
            assert (np.asarray(picture) == [255, 40, 40]).all(-1).any()


def test_a_box_holds_the_label_that_it_names(run: Path) -> None:
    found = json.loads((run / "audit" / "regions.json").read_text())
    index = DomainIndex.open(run.parent / "wrong")
    labels = {sample.key: sample.label.numpy() for sample in eval_samples(index, 0, len(index), 64)}
    for region in found["regions"]:
        if region["domain"] == "wrong":
            left, top, right, bottom = region["box"]
            inside = labels[region["key"]][top:bottom, left:right]
            assert (inside == CLASSES.classes.index(region["class"])).mean() > 0.4


def test_the_report_shows_the_regions(run: Path) -> None:
    assert run_command(["report", str(run)]).returncode == 0
    page = (run / "report.html").read_text()
    first = json.loads((run / "audit" / "regions.json").read_text())["regions"][0]
    assert "Most distrusted regions" in page
    assert f"labelled <b>{first['class']}</b>, judged as <b>{first['judged_as']}</b>" in page


def test_again_with_fewer_images_replaces_the_folder(run: Path) -> None:
    done = run_command(["audit", str(run), "--images", "2", "--regions", "1"])
    assert done.returncode == 0, done.stderr
    assert "wrong" in done.stdout
    assert "regions drawn: 1" in done.stdout
    assert len(list((run / "audit").glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images", "-1"], "--images is 0 (all) or more"),
        (["--regions", "0"], "--regions 1 or more"),
    ],
)
def test_wrong_numbers_are_refused(run: Path, arguments: list[str], said: str) -> None:
    done = run_command(["audit", str(run), *arguments])
    assert done.returncode == 78
    assert said in done.stderr


def test_a_run_without_judges_says_what_to_train(blocks: Path, tmp_path: Path) -> None:
    tree = tiny_config(blocks, tmp_path / "run", train={"steps": 1, "global_batch": 6})
    tree["ppar"]["enabled"] = False
    run_ranks(["train", str(write_config(tmp_path / "config.yaml", tree))], 1)
    done = run_command(["audit", str(tmp_path / "run")])
    assert done.returncode == 78
    assert "train with ppar.reweighting.cells.enabled=true" in done.stderr
    done = run_command(["audit", str(tmp_path / "run" / "checkpoints")])
    assert done.returncode == 78
    assert "has no config.yaml; give the run" in done.stderr
