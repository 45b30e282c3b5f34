"""What ``doctor`` says of keys without effect: trackers that get no figures, windows of whole images."""

from __future__ import annotations

import importlib.util

import pytest

from tests.unit.doctor.worlds import Doctor


def test_trackers_that_are_on_are_named(doctor: Doctor) -> None:
    assert "monitoring.trackers is empty" in doctor()["trackers"]["found"]
    found = doctor(monitoring={"trackers": ["csv", "tensorboard"]})["trackers"]
    assert (found["status"], found["facts"]["trackers"]) == ("ok", ["csv", "tensorboard"])
    assert "csv, tensorboard: installed" in found["found"]


def test_one_that_cannot_work_is_a_failure(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = doctor(monitoring={"trackers": ["mlflow"]})["trackers"]
    assert found["status"] == "failure"
    assert "set MLFLOW_TRACKING_URI" in found["remedy"]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    found = doctor(monitoring={"trackers": ["csv", "wandb"]})["trackers"]
    assert found["status"] == "failure"
    assert "has wandb, which is not installed" in found["found"]
    assert "pip install 'ppar-dist[wandb]'" in found["remedy"]


def test_keys_of_windows_without_windows_are_told(doctor: Doctor) -> None:
    assert "windows" not in doctor()
    assert "windows" not in doctor(evaluation={"mode": "slide", "crop": [64, 64], "stride": [32, 32]})
    found = doctor(evaluation={"crop": [400, 400]})["windows"]
    assert found["status"] == "warning"
    assert "evaluation.crop=[400, 400]: of windows" in found["found"]


def test_trust_that_another_switch_turns_off_is_told(doctor: Doctor) -> None:
    found = doctor(ppar={"reweighting": {"enabled": False, "trust": {"enabled": True}}})["trust"]
    assert found["status"] == "warning"
    assert "turns ppar.reweighting.trust off as well" in found["found"]
    assert "ppar.reweighting.beta=0" in found["remedy"]


def test_trust_by_a_tower_of_random_weights_is_told(doctor: Doctor) -> None:
    assert "trust" not in doctor(ppar={"reweighting": {"trust": {"enabled": False}}})
    found = doctor(ppar={"reweighting": {"trust": {"enabled": True}}})["trust"]
    assert found["status"] == "warning"
    assert "the tower's weights are random" in found["found"]
    assert "set model.backbone.pretrained" in found["remedy"]
