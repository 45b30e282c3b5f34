"""Batch, budget, model and text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ppar_dist.config.load import parse_config
from ppar_dist.data.shards.writer import write_domain
from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.configuration import weights
from ppar_dist.doctor.findings import Finding
from tests.ranks import encode, tiny_config
from tests.unit.doctor.worlds import Doctor


def test_a_batch_that_does_not_divide(doctor: Doctor) -> None:
    checks = doctor("--nproc", "4")
    assert checks["batch"]["status"] == "failure"
    assert "got 6 on 4 ranks" in checks["batch"]["found"]
    assert checks["batch"]["remedy"] == "numbers of ranks that divide it: 1, 2, 3, 6"
    checks = doctor("--nproc", "3", "--nodes", "2")
    assert checks["batch"]["facts"]["ranks"] == 6
    assert checks["batch"]["status"] == "ok"


def test_a_stage_without_steps_and_nothing_to_evaluate(doctor: Doctor) -> None:
    checks = doctor("ppar.alignment.boundaries=[0.3, 0.3, 0.6]", "train.eval_every=2", "train.steps=5")
    assert checks["stages"]["status"] == "warning"
    assert "text never happens" in checks["stages"]["found"]
    assert "train.eval_every=2 has nothing to evaluate on" in checks["epochs"]["found"]


def test_what_training_refuses_is_refused_here(doctor: Doctor, own: Path) -> None:

    grey = np.zeros((24, 36, 3), np.uint8)
    nothing = np.full((24, 36), 255, np.uint8)
    rows = [(f"s{i}", encode(grey + i, "JPEG"), encode(nothing, "PNG"), {}) for i in range(3)]
    write_domain(own / "blank", "roads6", rows)
    checks = doctor(root=own, data={**tiny_config(own, own)["data"], "sources": ["left", "blank"]})
    assert "source blank has no pixel of any class" in checks["refusals"]["found"]
    assert "without any labelled pixel: source blank 3 images" in checks["unlabelled"]["found"]
    assert checks["unlabelled"]["status"] == "warning"


@pytest.mark.parametrize(
    ("override", "check", "message"),
    [
        ("text.file=gone.npz", "text", "gone.npz"),
        ("model.backbone.embed_dim=24", "text", "is 16 wide, the model's joint space 24"),
        ("model.backbone.name=resnet1", "model", "resnet1"),
        ("data.classes=roads7", "domains", "unknown class set 'roads7'"),
        ("monitoring.address=192.0.2.1", "metrics ports", "192.0.2.1:9555"),
        ("faults.grace_s=0.0001", "save time", "a preempted job loses its work"),
    ],
)
def test_each_wrong_value_fails_its_own_check(
    doctor: Doctor, override: str, check: str, message: str
) -> None:
    checks = doctor(override, monitoring={"enabled": True, "port": 9555})
    assert checks[check]["status"] == "failure"
    assert message in checks[check]["found"]
    assert not any("this check itself failed" in entry["found"] for entry in checks.values())


def test_weights_that_must_be_downloaded_are_a_warning(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def examine(pretrained: object) -> Finding:
        backbone = {"kind": "open_clip", "name": "RN50", "pretrained": str(pretrained)}
        found = weights(
            ConfigCase(parse_config(tiny_config(blocks, tmp_path) | {"model": {"backbone": backbone}}))
        )
        assert found is not None
        return found

    assert examine("openai").status == "warning"
    assert "the first start downloads them" in examine("openai").found
    file = tmp_path / "mine.pt"
    assert examine(file).status == "failure"
    assert "neither a file nor a tag of RN50" in examine(file).found
    file.write_bytes(b"weights")
    assert examine(file).status == "failure"
    assert "it begins with b'weights'; accepted are" in examine(file).found
