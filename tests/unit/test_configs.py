"""Every file of configs/ is valid, says what STYLE asks of its head, and names models that exist."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import timm
from open_clip.pretrained import list_pretrained_tags_by_model

from ppar_dist.class_sets import class_set
from ppar_dist.config.load import load_config
from ppar_dist.models.timm_trunk import tagged_models

FOLDER = Path(__file__).parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))
GPU_FILES = [path.stem for path in FILES if load_config(path).engine.precision == "bf16"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_is_valid_and_names_what_exists(path: Path) -> None:
    config = load_config(path)
    class_set(config.data.classes)
    backbone = config.model.backbone
    if backbone.kind == "timm":
        assert timm.is_model(backbone.name)
        tag = backbone.pretrained
        assert tag is None or Path(tag).suffix or f"{backbone.name}.{tag}" in tagged_models(backbone.name)
    else:
        assert backbone.name in open_clip.list_models()
        assert backbone.pretrained in list_pretrained_tags_by_model(backbone.name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_opens_with_purpose_and_command_and_names_no_place_of_one_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert len(head) >= 3
    assert f"configs/{path.name}" in "\n".join(head) or "ppar-dist demo" in text
    assert "/work/" not in text
    assert "/root/" not in text


def test_every_configuration_is_in_the_list_of_recipes_or_trains_on_a_cpu() -> None:
    page = (FOLDER.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert len(GPU_FILES) >= 6
    assert all(f"`configs/{name}.yaml`" in page for name in GPU_FILES)


@pytest.mark.parametrize("name", GPU_FILES)
def test_what_was_not_measured_is_marked_so(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert "not run here" in text
    assert "Hardware:" in text
    assert "Time: not measured" in text
