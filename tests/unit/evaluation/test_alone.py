"""A checkpoint that was copied away from its run brings its own configuration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ppar_dist.checkpoint.layout import sealed
from ppar_dist.config.identity import determining
from ppar_dist.config.load import load_config
from ppar_dist.errors import UserError
from ppar_dist.evaluation.evaluate import score
from tests.unit.tiny_run import make_domain, make_run


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A checkpoint where the configuration of another run lies two folders above."""
    make_run(tmp_path / "shards", tmp_path / "run")
    make_domain(tmp_path / "night", 3)
    (tmp_path / "config.yaml").write_text("not of this run")
    return Path(shutil.copytree(tmp_path / "run/checkpoints/step-00000040", tmp_path / "copies/mine"))


def note(checkpoint: Path, **facts: object) -> None:
    file = checkpoint / "manifest.json"
    file.write_text(json.dumps(sealed(json.loads(file.read_text()) | facts)))


@pytest.mark.parametrize("version", ["now", "earlier"])
def test_it_scores_as_within_its_run(alone: Path, version: str) -> None:
    root = alone.parents[1]
    config = load_config(root / "run" / "config.yaml")
    whole = config.model_dump(mode="json")
    note(alone, **({"whole_config": whole} if version == "now" else {"config": determining(config)}))
    shutil.move(root / "run", root / "elsewhere")
    found = score(alone, {"night": root / "night"})
    assert found.targets == score(root / "elsewhere", {"night": root / "night"}).targets
    assert (found.run, found.step) == ("tiny" if version == "now" else "mine", 40)
    assert {path.name for path in alone.iterdir()} == {
        "manifest.json",
        "model.safetensors",
        "ppar.safetensors",
        "state.json",
    }, "nothing is written into it"


def test_one_without_its_configuration_says_where_that_would_be(alone: Path) -> None:
    with pytest.raises(UserError, match=r"mine does not hold its configuration; leave it in its run"):
        score(alone, {"night": alone.parents[1] / "night"})
