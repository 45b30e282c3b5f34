"""``ppar-dist audit`` on a real run, one of whose sources is labelled by another legend."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from ppar_dist.class_sets import class_set
from ppar_dist.data.reading import eval_samples
from ppar_dist.data.shards.index import DomainIndex
from tests.ranks import (
    exchange_labels,
    run_command,
    run_ranks,
    tiny_config,
    write_blocks_domain,
    write_config,
)

CLASSES = class_set("roads6")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources with right labels, and one whose road is called sidewalk, and the other way round."""
    root = tmp_path_factory.mktemp("audit")
    for number, name in enumerate(("left", "right", "third", "clean")):
        write_blocks_domain(root / name, samples=8, seed=number, rare_in=None)
    exchange_labels(root / "clean", root / "wrong")
    tree = tiny_config(root, root / "run", train={"steps": 1, "global_batch": 6})
    tree["data"]["sources"] = ["left", "right", "third", "wrong"]
    done = run_command(["train", str(write_config(root / "config.yaml", tree))])
    assert done.returncode == 0, done.stderr
    (root / "said").write_text(done.stderr)
    return root / "run"


def test_training_says_which_labels_it_distrusts(run: Path) -> None:
    lines = [line for line in (run.parent / "said").read_text().splitlines() if "trust in the labels" in line]
    assert len(lines) == 2
    assert "the tower's weights are random" in lines[0]
    assert "labels of wrong is low" in lines[1]
    assert "road 0.00 (rather sidewalk)" in lines[1]
    assert "sidewalk 0.00 (rather road)" in lines[1]
    assert f"ppar-dist audit {run}" in lines[1]


def test_training_says_which_classes_the_refit_did_not_see(run: Path) -> None:
    said = (run.parent / "said").read_text()
    assert "these classes keep the classifier of training, without a prototype of the image: car. A" in said
    assert "in one of refit.images=4 readable images" in said


def test_the_wrong_source_is_found_and_its_regions_are_drawn(run: Path) -> None:
    done = run_command(["audit", str(run), "--regions", "12", "--json"])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((run / "audit" / "regions.json").read_text())
    assert found["images"] == {"left": 8, "right": 8, "third": 8, "wrong": 8}
    for label in ("road", "sidewalk"):
        assert found["trust"]["wrong"][label] < 0.1
        assert found["trust"]["left"][label] > 0.9
    assert found["trust"]["wrong"]["sky"] > 0.9
    assert found["may_be"].keys() == {"wrong"}
    assert found["may_be"]["wrong"]["road"]["sidewalk"] == 1.0
    assert found["may_be"]["wrong"]["sidewalk"]["road"] == 1.0
    assert "car" not in found["trust"]["left"]  # no source has one: not judged
    assert 1 <= len(found["regions"]) <= 12
    losses = [
        [region["pixels"] * (1 - region[figure]) for figure in ("trust", "weight")]
        for region in found["regions"]
    ]
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


def test_its_trust_is_that_of_the_run(run: Path) -> None:
    """It builds the tower that the run began with, and looks at the same images."""
    found = json.loads((run / "audit" / "regions.json").read_text())["trust"]
    used = load_file(max((run / "checkpoints").glob("step-*")) / "ppar.safetensors")["reweighting.trust"]
    for name, row in zip(("left", "right", "third", "wrong"), used.tolist(), strict=True):
        expected = dict(zip(CLASSES.classes, row, strict=True))
        assert found[name] == pytest.approx({label: expected[label] for label in found[name]}, abs=1e-6)


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
    assert "Distrusted labels" in page
    assert "<td>wrong</td><td><b>road</b></td><td>sidewalk 1.00" in page
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


def test_a_plain_run_is_audited_too(run: Path) -> None:
    """And says the same: what the run has learned does not matter."""
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree["run"]["dir"] = str(run.parent / "plain")
    tree["ppar"]["enabled"] = False
    run_ranks(["train", str(write_config(run.parent / "plain.yaml", tree))], 1)
    found = []
    for folder in (run, run.parent / "plain"):
        done = run_command(["audit", str(folder), "--json"])
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]


def test_the_judge_of_a_run_that_began_with_another_looks_at_that_ones_tower(
    run: Path, tmp_path: Path
) -> None:
    """Its own tower has another seed. Where the checkpoint has changed, the audit is refused."""
    origin = tmp_path / "origin"
    shutil.copytree(run, origin)
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree |= {"init_from": str(origin), "seed": 5}
    tree["run"]["dir"] = str(tmp_path / "run")
    run_ranks(["train", str(write_config(tmp_path / "config.yaml", tree))], 1)
    done = run_command(["audit", str(tmp_path / "run"), "--json"])
    assert done.returncode == 0, done.stderr
    assert "random" not in done.stderr
    trust = load_file(tmp_path / "run" / "checkpoints" / "step-00000001" / "ppar.safetensors")[
        "reweighting.trust"
    ]
    for name, row in zip(("left", "right", "third", "wrong"), trust.tolist(), strict=True):
        for label, value in json.loads(done.stdout)["trust"][name].items():
            assert value == pytest.approx(row[CLASSES.classes.index(label)], abs=1e-6)
    shutil.rmtree(origin / "checkpoints")
    done = run_command(["audit", str(tmp_path / "run")])
    assert done.returncode == 78
    assert (
        f"began with init_from={origin} step-00000001, whose tower judges, and it cannot be read"
        in done.stderr
    )


def test_two_sources_judge_nothing_and_a_source_of_another_class_set_is_refused(
    blocks: Path, tmp_path: Path
) -> None:
    tree = tiny_config(blocks, tmp_path / "run", train={"steps": 1, "global_batch": 6})
    shutil.copytree(blocks, tmp_path / "blocks")
    tree["data"] |= {"root": str(tmp_path / "blocks"), "sources": ["left", "right"]}
    told = run_command(["train", str(write_config(tmp_path / "config.yaml", tree))])
    assert told.returncode == 0, told.stderr
    done = run_command(["audit", str(tmp_path / "run")])
    assert done.returncode == 0, done.stderr
    for said in (told.stderr, done.stdout):
        assert "no label could be judged" in said
        assert "a class needs three sources that show it" in said
    meta = tmp_path / "blocks" / "left" / "domain.json"
    meta.write_text(meta.read_text().replace('"roads6"', '"roads7"'))
    done = run_command(["audit", str(tmp_path / "run")])
    assert done.returncode == 78
    assert "domain left has class set roads7" in done.stderr


def test_what_cannot_be_audited_is_refused(blocks: Path, tmp_path: Path) -> None:
    tree = tiny_config(blocks, tmp_path / "run", train={"steps": 1, "global_batch": 6})
    tree["data"]["sources"] = ["left"]
    run_ranks(["train", str(write_config(tmp_path / "config.yaml", tree))], 1)
    done = run_command(["audit", str(tmp_path / "run")])
    assert done.returncode == 78
    assert "an audit lets sources judge each other" in done.stderr
    assert "has left alone" in done.stderr
    done = run_command(["audit", str(tmp_path / "run" / "checkpoints")])
    assert done.returncode == 78
    assert "has no config.yaml; give the run" in done.stderr
