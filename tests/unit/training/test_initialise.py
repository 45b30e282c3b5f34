"""A new run that begins with another's weights: what fits, what does not, and what a resume asks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from ppar_dist import checkpoint
from ppar_dist.class_sets import class_set
from ppar_dist.config.load import parse_config
from ppar_dist.config.schema import Config
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.models.segmentor import Segmentor, build_segmentor
from ppar_dist.run.origin import refuse_another_start
from ppar_dist.run.state import TrainState
from ppar_dist.training.initialise import StartReport, initialise
from ppar_dist.training.plan import make_plan
from tests.unit.tiny_run import make_config, make_run, publish

ROADS = class_set("roads6")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one checkpoint, whose classifier is linear."""
    root = tmp_path_factory.mktemp("source")
    make_run(root, root / "run", classifier="linear")
    return root / "run"


def begin(source: Path, **changes: Any) -> tuple[Segmentor, StartReport]:
    config = with_changes(source, **changes)
    torch.manual_seed(99)
    segmentor, _ = build_segmentor(config, ROADS, load_weights=False)
    return segmentor, initialise(segmentor, config, ROADS, World())


def with_changes(source: Path, **changes: Any) -> Config:
    tree = make_config(source.parent, source.parent / "new", "linear").model_dump(mode="json")
    for key, value in changes.items():
        *sections, leaf = key.split("__")
        inner = tree
        for section in sections:
            inner = inner[section]
        inner[leaf] = value
    return parse_config(tree | {"init_from": str(source)})


def test_the_same_model_begins_with_all_weights(source: Path) -> None:
    segmentor, report = begin(source)
    expected = load_segmentor(source)[0].state_dict()
    for name, value in segmentor.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert len(report.taken) == len(list(segmentor.parameters()))
    assert (report.new, report.other_shape, report.left_over, report.notes) == ((), (), (), ())
    assert report.checkpoint == "step-00000040"
    assert report.sha256 == checkpoint.read_manifest(checkpoint.resolve(source))["manifest_sha256"]
    count = len(report.taken)
    assert report.text() == f"weights of {source}, step-00000040: {count} of {count} parameters taken"


def test_what_does_not_fit_stays_new_and_is_told(source: Path) -> None:
    before = begin(source)[0].state_dict()
    segmentor, report = begin(source, model__decoder__width=16, model__classifier="otp_init")
    assert any(name.startswith("decoder.") and ", there " in name for name in report.other_shape)
    assert {"class_vectors", "projection"} <= set(report.new)
    assert set(report.left_over) == {"linear.weight", "linear.bias"}
    assert all(name in report.taken for name, _ in segmentor.named_parameters() if ".tower." in name)
    found = segmentor.state_dict()
    assert all(torch.equal(found[name], before[name]) for name in report.taken)
    assert "stay new: " in report.text()
    assert "stay new for their shape: " in report.text()
    assert "have no place here: linear.weight, linear.bias" in report.text()


def test_other_classes_leave_the_classifier_new(source: Path) -> None:
    """As many as before, under other names: its rows would mean other things."""
    config = with_changes(source)
    names = (*ROADS.classes[1:], "other")
    renamed = dataclasses.replace(ROADS, name="others6", classes=names)
    torch.manual_seed(99)
    segmentor, _ = build_segmentor(config, renamed, load_weights=False)
    own = segmentor.linear.weight.clone()
    report = initialise(segmentor, config, renamed, World())
    assert torch.equal(segmentor.linear.weight, own)
    assert report.new == ("linear.weight", "linear.bias")
    assert report.notes == ("its classes are roads6, not others6: the classifier stays new",)


def test_adapters_begin_on_the_weights_taken(source: Path) -> None:
    """Also those of DoRA, which know the lengths of what they adapt."""
    lora = {"kind": "dora", "rank": 2}
    segmentor, report = begin(source, model__backbone__trainable="lora", model__backbone__lora=lora)
    plain = load_segmentor(source)[0]
    images = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    with torch.no_grad():
        found, expected = segmentor.eval()(images), plain(images)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert (report.new, report.left_over) == ((), ())


def test_nothing_that_fits_is_refused(source: Path) -> None:
    with pytest.raises(UserError, match="none of its weights fits this model by name and shape"):
        begin(
            source,
            model__backbone__name="test_vit",
            model__backbone__options={},
            model__decoder__width=16,
            model__decoder__kind="aspp",
            model__classifier="otp_init",
        )


def test_a_path_without_a_checkpoint_is_refused_before_anything_is_built(
    source: Path, tmp_path: Path
) -> None:
    tree = with_changes(source, model__classifier="linear").model_dump(mode="json")
    tree |= {"init_from": str(tmp_path), "ppar": {"enabled": False}, "text": {}}
    with pytest.raises(
        UserError, match=r"init_from=.* is neither a run with a whole checkpoint nor a checkpoin"
    ):
        make_plan(parse_config(tree), 1)
    make_plan(parse_config(tree | {"init_from": str(source)}), 1)


def test_a_resume_asks_whether_it_is_the_same_start(source: Path, tmp_path: Path) -> None:
    config, sha256 = (
        with_changes(source),
        checkpoint.read_manifest(checkpoint.resolve(source))["manifest_sha256"],
    )
    state = TrainState(started_from={"checkpoint": "step-00000040", "sha256": sha256})
    refuse_another_start(config, state)
    refuse_another_start(config.model_copy(update={"init_from": tmp_path / "gone"}), state)
    refuse_another_start(config.model_copy(update={"init_from": None}), state)
    with pytest.raises(UserError, match=r"was not started from init_from=.*; remove init_from"):
        refuse_another_start(config, TrainState())
    other = make_config(source.parent, tmp_path / "other", "otp")  # so that its weights are others
    folder = publish(other, 40)
    for path in (folder, tmp_path / "other"):
        with pytest.raises(UserError, match=r"is not the checkpoint that .* was started from"):
            refuse_another_start(config.model_copy(update={"init_from": path}), state)
    state.started_from = {"checkpoint": "step-00000020", "sha256": "0", "origin": str(tmp_path / "first")}
    with pytest.raises(UserError, match=r"other does not hold the checkpoint that .*step-00000020"):
        refuse_another_start(config.model_copy(update={"init_from": tmp_path / "other"}), state)
    state.started_from["origin"] = str(tmp_path / "other")  # it trained on, and has deleted that checkpoint
    refuse_another_start(config.model_copy(update={"init_from": tmp_path / "other"}), state)
