"""A run and its checkpoints carry their class set: the user's file may be gone or edited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ppar_dist import checkpoint
from ppar_dist.class_sets import built_in, class_set, read_record, recorded_class_set, to_record
from ppar_dist.config.class_file import content_hash, pinned, read_class_file
from ppar_dist.config.load import parse_config
from ppar_dist.distributed.world import World
from ppar_dist.errors import ConfigError, UserError
from ppar_dist.evaluation.load import classes_of, config_of
from ppar_dist.run.claim import RunClaim
from ppar_dist.run.lock import RunLock
from ppar_dist.training.plan import make_plan
from tests.ranks import tiny_config
from tests.unit.tiny_run import make_domain

TEXT = """\
classes:
  - {name: road, colour: [1, 2, 3], labels: [Weg, "straße"], texts: [street, way]}
  - {name: sidewalk, colour: [4, 5, 6]}
  - {name: building, colour: [7, 5, 6]}
  - {name: vegetation, colour: [8, 5, 6]}
  - {name: sky, colour: [9, 5, 6], texts: [b, a]}
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(TEXT)
    return file


@pytest.mark.parametrize("name", built_in())
def test_a_record_says_all(tmp_path: Path, name: str) -> None:
    (tmp_path / "classes.json").write_text(to_record(class_set(name)))
    assert read_record(tmp_path / "classes.json") == class_set(name)


def test_a_record_keeps_the_names_of_single_data_sets(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(TEXT.replace("[4, 5, 6]", "[4, 5, 6], native: {idd: [curb], mapillary: [a--b]}"))
    classes = class_set(str(file))
    assert classes.native[1] == {("idd", "curb"), ("mapillary", "a--b")}
    reference = pinned(str(file))
    (tmp_path / "classes.json").write_text(to_record(classes))
    file.unlink()
    assert recorded_class_set(reference, tmp_path) == classes


def test_a_record_is_known_by_its_content(tmp_path: Path, mine: Path) -> None:
    reference, classes = pinned(str(mine)), class_set(str(mine))
    assert content_hash(classes.classes, classes.members, classes.prompts) == reference.rpartition("@")[2]
    assert read_class_file(str(mine)).full_hash() == reference.rpartition("@")[2]
    (tmp_path / "classes.json").write_text(to_record(classes))
    mine.write_text(TEXT.replace("way", "path"))
    assert recorded_class_set(reference, tmp_path) == classes
    with pytest.raises(ConfigError, match="has changed"):
        recorded_class_set(reference, tmp_path / "another run")
    edited = pinned(str(mine))
    assert recorded_class_set(edited, tmp_path).prompts[0] == ("street", "path"), "not the record's"
    mine.unlink()
    assert recorded_class_set(reference, tmp_path) == classes
    with pytest.raises(ConfigError, match="put the file back"):
        recorded_class_set(edited, tmp_path)
    (tmp_path / "classes.json").write_text("{")
    with pytest.raises(ConfigError, match="put the file back"):
        recorded_class_set(reference, tmp_path)
    assert recorded_class_set("roads6", tmp_path) == class_set("roads6")


def test_a_run_goes_on_without_the_file_and_not_with_an_edited_one(tmp_path: Path, mine: Path) -> None:
    for seed, name in enumerate(("left", "right")):
        make_domain(tmp_path / name, 8, seed, classes=str(mine))
    tree = tiny_config(tmp_path, tmp_path / "run", data={"classes": str(mine)})
    config = parse_config(tree)
    plan = make_plan(config, 1)
    lock = RunLock(config.run.dir, 60.0)
    claim = RunClaim(config, World(), lock, plan.classes)
    claim.claim()
    claim.record()
    checkpoint.publish(
        config.run.dir,
        checkpoint.Snapshot(4, {}, {"state.json": "{}"}, {"whole_config": config.model_dump(mode="json")}),
    )
    before = class_set(str(mine))
    mine.write_text(TEXT.replace("street", "lane"))
    with pytest.raises(UserError, match=r"another configuration: data\.classes: 'mine\.yaml@"):
        RunClaim(parse_config(tree), World(), lock, plan.classes).claim()
    mine.unlink()
    with pytest.raises(ConfigError, match=r"goes on with its own config\.yaml"):
        parse_config(tree)
    assert make_plan(config, 1).classes == before
    [step] = (config.run.dir / "checkpoints").glob("step-*")
    assert classes_of(step, config_of(step)) == before, "of the run"
    lock.close()


def test_a_checkpoint_brings_its_own(tmp_path: Path, mine: Path) -> None:
    """Also one that was copied away from its run."""
    config = parse_config(tiny_config(tmp_path, tmp_path / "run", data={"classes": str(mine)}))
    before = class_set(str(mine))
    texts = {"state.json": "{}", "classes.json": to_record(before)}
    facts = {"whole_config": config.model_dump(mode="json")}
    found = checkpoint.publish(tmp_path / "copy", checkpoint.Snapshot(4, {}, texts, facts))
    assert "classes.json" in checkpoint.read_manifest(found)["files"]
    mine.unlink()
    assert classes_of(found, config_of(found)) == before


@pytest.mark.parametrize(
    "change",
    [
        {"palette": [[0, 0, 256]]},
        {"classes": []},
        {"prompts": 5},
        {"native": [[["idd"]]]},
        {"native": 5},
        None,
    ],
)
def test_what_is_no_class_set_is_refused(
    tmp_path: Path, mine: Path, change: dict[str, object] | None
) -> None:
    tree = json.loads(to_record(class_set(str(mine))))
    (tmp_path / "classes.json").write_text("[1" if change is None else json.dumps(tree | change))
    with pytest.raises(UserError, match=r"classes\.json is not a class set: .*restore it"):
        read_record(tmp_path / "classes.json")
