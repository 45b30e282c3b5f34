"""Files of weights: where they are looked up, and what their place means for a run's identity."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppar_dist.config.identity import changes_since, config_changes, config_hash, determining
from ppar_dist.config.schema import Config
from ppar_dist.config.weights import fetch_weights, find_weights
from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.configuration import weights
from tests.unit.tiny_run import make_config


def config_with(pretrained: str | None) -> Config:
    config = make_config(Path("shards"), Path("run"))
    backbone = config.model.backbone.model_copy(update={"pretrained": pretrained})
    return config.model_copy(update={"model": config.model.model_copy(update={"backbone": backbone})})


def test_a_relative_file_that_is_not_here_is_looked_up_and_a_tag_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("weights.pt", "openai", "gone.npz"):  # the last is the text file of `make_config`
        (tmp_path / name).touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def found(pretrained: str | None) -> str | None:
        return find_weights(config_with(pretrained), tmp_path).model.backbone.pretrained

    text = config_with(None).text.model_copy(update={"file": Path("weights/gone.npz")})
    config = config_with(None).model_copy(update={"text": text})
    assert find_weights(config, tmp_path).text.file == tmp_path / "gone.npz"
    assert found("trunk/weights.pt") == str(tmp_path / "weights.pt")
    assert found("/trunk/weights.pt") == "/trunk/weights.pt"
    assert found("trunk/missing.pt") == "trunk/missing.pt"
    assert found("openai") == "openai"
    assert found(None) is None
    (tmp_path / "elsewhere" / "weights.pt").touch()
    assert found("weights.pt") == "weights.pt"


def test_the_folder_of_a_file_is_no_part_of_a_run_but_its_name_and_a_tag_are() -> None:
    here, there = config_with("/here/weights.pt"), config_with("there/weights.pt")
    assert config_changes(here, there) == []
    assert config_hash(here) == config_hash(there)
    assert here.model.backbone.pretrained == "/here/weights.pt"
    noted = here.model_dump(mode="json")["model"]  # an earlier version noted the whole path
    assert changes_since(determining(here) | {"model": noted}, there) == []
    changed = "model.backbone.pretrained: 'weights.pt' -> 'other.pt'"
    assert config_changes(here, config_with("/here/other.pt")) == [changed]
    tags = config_with("org/one"), config_with("two/one")
    assert config_changes(*tags) == ["model.backbone.pretrained: 'org/one' -> 'two/one'"]


def test_the_doctor_names_a_file_of_weights_that_is_missing() -> None:
    finding = weights(ConfigCase(config_with("weights/missing.pt")))
    assert finding is not None
    assert finding.status == "failure"
    assert "model.backbone.pretrained=weights/missing.pt" in finding.found
    assert "$PPAR_WEIGHTS" in str(finding.remedy)


def test_a_url_of_weights_stays_one_until_it_is_fetched(tmp_path: Path) -> None:
    url = "s3://bucket/weights/tower.safetensors"
    config = find_weights(config_with(url), tmp_path)
    assert config.model.backbone.pretrained == url
    (tmp_path / "copy.safetensors").touch()
    fetched = fetch_weights(config, lambda place: tmp_path / "copy.safetensors")
    assert fetched.model.backbone.pretrained == str(tmp_path / "copy.safetensors")
