"""The check of the weights loads the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.doctor.worlds import Doctor
from tests.unit.models.clip_files import hugging_face, torchscript, write
from tests.unit.models.tiny_clip import register, tower

NAME = "tiny-vit-quickgelu"


@pytest.fixture(scope="module", autouse=True)
def _tiny_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    register(tmp_path_factory.mktemp("models"))


def model(file: Path, name: str = NAME, **more: object) -> dict[str, object]:
    return {"backbone": {"kind": "open_clip", "name": name, "pretrained": str(file), **more}}


def test_a_file_is_loaded_and_described(doctor: Doctor, tmp_path: Path) -> None:
    file = torchscript(tower(NAME), tmp_path / "ViT.pt")
    found = doctor(model=model(file))["weights"]
    assert found["status"] == "ok"
    assert "TorchScript archive with open_clip's names, float16 (converted to float32)" in found["found"]
    assert "62 of 66 tensors used; QuickGELU, as the file itself says; left over: " in found["found"]
    assert found["facts"]["missing"] == []
    assert found["facts"]["tensors"] == 66
    assert sorted(found["facts"]["left_over"])[0] == "attn_mask"


def test_garbage_other_models_and_other_activations_are_failures(doctor: Doctor, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"\x00" * 4096)
    found = doctor(model=model(file))["weights"]
    assert found["status"] == "failure"
    assert "cannot be read as weights: it begins with" in found["found"]
    write(tower("tiny-rn").state_dict(), file)
    found = doctor(model=model(file))["weights"]
    assert found["status"] == "failure"
    assert "missing: visual.class_embedding" in found["found"]
    assert "left over: visual.bn1.weight" in found["found"]
    torchscript(tower(NAME), file)
    found = doctor(model=model(file, "tiny-vit"))["weights"]
    assert found["found"].endswith("set model.backbone.name: tiny-vit-quickgelu")


def test_values_are_looked_at(doctor: Doctor, tmp_path: Path) -> None:
    weights = tower(NAME).state_dict()
    weights["visual.conv1.weight"].zero_()
    found = doctor(model=model(write(weights, tmp_path / "a.pt")))["weights"]
    assert found["status"] == "warning"
    assert found["facts"]["zeros"] == ["visual.conv1.weight"]
    weights["visual.conv1.weight"][0, 0, 0, 0] = float("inf")
    found = doctor(model=model(write(weights, tmp_path / "b.pt")))["weights"]
    assert found["status"] == "failure"
    assert "weights are not finite in visual.conv1.weight" in found["found"]


def test_an_image_tower_alone_needs_a_file_of_text(doctor: Doctor, tmp_path: Path) -> None:
    weights = tower(NAME).state_dict()
    alone = {name: value for name, value in weights.items() if name.startswith("visual.")}
    file = write(hugging_face(alone), tmp_path / "a.safetensors")
    checks = doctor(model=model(file))
    assert checks["weights"]["status"] == checks["text"]["status"] == "ok"
    assert len(checks["weights"]["facts"]["missing"]) == 17
    text = doctor(model=model(file), text={"file": None})["text"]
    assert text["status"] == "failure"
    assert "holds no text tower, and text.file is not set" in text["found"]
    whole = write(weights, tmp_path / "b.pt")
    assert doctor(model=model(whole), text={"file": None})["text"]["status"] == "ok"


def test_a_tower_without_dense_features_is_a_failure_of_the_model(doctor: Doctor) -> None:
    backbone = {"kind": "open_clip", "name": "vit_relpos_medium_patch16_cls_224"}
    found = doctor(model={"backbone": backbone})["model"]
    assert found["status"] == "failure"
    assert "its tower takes no image of 64x96 pixels" in found["found"]


def test_a_timm_trunks_file_is_loaded_too(doctor: Doctor, tmp_path: Path) -> None:
    import timm

    weights = timm.create_model("convnext_atto", num_classes=7).state_dict()
    file = write(weights, tmp_path / "a.safetensors")
    found = doctor(model=model(file, "convnext_atto", kind="timm", embed_dim=16))["weights"]
    assert found["status"] == "ok"
    assert f"safetensors with timm's names, float32, {len(weights)} tensors" in found["found"]
    torch.save({"a": torch.ones(2)}, file)
    found = doctor(model=model(file, "convnext_atto", kind="timm", embed_dim=16))["weights"]
    assert found["status"] == "failure"


@pytest.mark.parametrize(("kind", "name"), [("timm", "resnet18"), ("open_clip", "RN50")])
def test_a_tag_that_the_library_does_not_list_is_a_failure(doctor: Doctor, kind: str, name: str) -> None:
    known = {"timm": "resnet18.a1_in1k", "open_clip": "openai"}[kind]
    backbone = {
        "kind": kind,
        "name": name,
        "pretrained": "a1_in2k",
        "embed_dim": 16 if kind == "timm" else None,
    }
    found = doctor(model={"backbone": backbone})["weights"]
    assert found["status"] == "failure"
    assert f"pretrained=a1_in2k is neither a file nor a tag of {name}" in found["found"]
    assert known in found["remedy"]
