"""An exported program gives the model's logits on images of any number and size, and stands alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.export.passes import move_to_device_pass

from ppar_dist.errors import UserError
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.export import export
from ppar_dist.export.exported import ExportedProgram
from tests.unit.export.models import ATTO, CLASSES, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program") / "run"
    make_run(folder, ATTO, refit={"prototypes": True})
    return folder


def test_prototypes_of_the_image_have_a_part_in_it(run: Path) -> None:
    segmentor, *_ = load_segmentor(run)
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with_them = segmentor(images).logits
    segmentor.image_prototypes = None
    assert (with_them - segmentor(images).logits).abs().max() > 0.1


def test_an_exported_program_stands_alone(run: Path, tmp_path: Path) -> None:
    made = export(run, tmp_path / "model.pt2", size=(20, 28))
    assert isinstance(made, ExportedProgram)
    extra = {"ppar_dist.json": ""}
    program = torch.export.load(made.file, extra_files=extra).module()
    images = torch.randint(0, 256, (3, 3, 20, 28), dtype=torch.uint8)
    segmentor, *_ = load_segmentor(run)
    assert torch.allclose(program(images), segmentor(images).logits, atol=1e-4)
    assert made.output_shape == ("batch", 6, 5, 7)
    assert json.loads(extra["ppar_dist.json"])["classes"] == list(CLASSES.classes)
    assert [item.name for item in tmp_path.iterdir()] == ["model.pt2"]


def test_a_program_takes_any_number_of_images_of_any_size(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "model")
    made = export(tmp_path / "model", tmp_path / "model.pt2")  # from a model folder
    assert isinstance(made, ExportedProgram)
    assert made.input_shape == ("batch", 3, "height", "width")
    exported = torch.export.load(made.file)
    segmentor, *_ = load_segmentor(run)
    for batch, rows, columns in ((1, 2, 7), (5, 3, 2)):
        size = (rows * made.multiple, columns * made.multiple)
        images = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)
        assert torch.allclose(exported.module()(images), segmentor(images).logits, atol=1e-4)
    elsewhere = move_to_device_pass(exported, "meta")  # no device is written into it
    logits = elsewhere.module()(torch.zeros(2, 3, *size, dtype=torch.uint8, device="meta"))
    assert (logits.device.type, tuple(logits.shape)) == ("meta", (2, 6, size[0] // 4, size[1] // 4))


@pytest.mark.process  # it starts none, but takes long
def test_a_model_of_one_size_asks_for_it(tmp_path: Path) -> None:
    """DINOv3's rotary grid is computed for the size of the example."""
    options = {"depth": 4, "embed_dim": 24, "num_heads": 2}
    tower = {"kind": "timm", "embed_dim": 8, "name": "vit_small_patch16_dinov3", "options": options}
    make_run(tmp_path / "run", tower)
    with pytest.raises(UserError, match=r"for images of any size .*fix one with --size"):
        export(tmp_path / "run", tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_a_tower_with_windows_asks_for_a_size_at_once(
    tmp_path: Path, name: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracing it for every size does not end, so it is not begun."""
    options = {"depths": [1, 1, 1, 1], "embed_dim": 8, "num_heads": [1, 1, 1, 1]}
    make_run(tmp_path / "run", {"kind": "timm", "embed_dim": 8, "name": name, "options": options})
    monkeypatch.setattr(torch.export, "export", None)
    with pytest.raises(UserError, match=r"attention in windows \(WindowAttention\) .*fix one with --size"):
        export(tmp_path / "run", tmp_path / f"model.{ending}")
    assert not (tmp_path / f"model.{ending}").exists()
