"""Files of CLIP weights in every form they come in, and files that are refused."""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppar_dist.class_sets import class_set
from ppar_dist.config.model_section import BackboneConfig, TextConfig
from ppar_dist.errors import UserError
from ppar_dist.models.backbone import Backbone, build_backbone
from ppar_dist.models.text import text_prototypes
from tests.unit.models.clip_files import Bomb, hugging_face, torchscript, write
from tests.unit.models.tiny_clip import noise, register, tower

NAME = "tiny-vit-quickgelu"
SENTENCES = ["a road", "a car"]
State = dict[str, Tensor]


@pytest.fixture(scope="module", autouse=True)
def _tiny_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    register(tmp_path_factory.mktemp("models"))


def built(file: Path, name: str = NAME, **options: object) -> Backbone:
    return build_backbone(BackboneConfig(name=name, pretrained=str(file), **options)).eval()


def state(name: str = NAME) -> State:
    return tower(name).state_dict()


def visual(weights: State) -> State:
    return {name: value for name, value in weights.items() if name.startswith("visual.")}


def refused(file: Path, name: str = NAME) -> str:
    with pytest.raises(UserError) as caught:
        built(file, name)
    assert str(file) in str(caught.value)
    return str(caught.value)


WHOLE: dict[str, Callable[[Path], Path]] = {
    "openai torchscript": lambda d: torchscript(tower(NAME), d / "a.pt"),
    "torchscript in float32, wrong suffix": lambda d: torchscript(tower(NAME), d / "a.bin", half=False),
    "scripted, of lists too": lambda d: scripted(d / "a.pt"),
    "trained by open_clip": lambda d: write(
        {f"module.{name}": value for name, value in state().items()}, d / "a.pt", epoch=3, optimizer={}
    ),
    "plain .pt": lambda d: write(state(), d / "a.pt"),
    "plain .bin": lambda d: write(state(), d / "pytorch_model.bin"),
    "torch before 1.6": lambda d: old_file(d / "a.pt"),
    "safetensors": lambda d: write(state(), d / "a.safetensors"),
    "safetensors named .bin": lambda d: write(state(), d / "a.safetensors").rename(d / "a.bin"),
    "compiled": lambda d: write({f"_orig_mod.{n}": v for n, v in state().items()}, d / "a.pt"),
    "hugging face": lambda d: write(hugging_face(state()), d / "model.safetensors"),
    "hugging face .bin, with positions": lambda d: write(
        hugging_face(state())
        | {f"{tower}_model.embeddings.position_ids": torch.arange(17)[None] for tower in ("vision", "text")},
        d / "pytorch_model.bin",
    ),
    "bfloat16": lambda d: write({n: v.bfloat16() for n, v in state().items()}, d / "a.pt"),
}
ALONE: dict[str, Callable[[Path], Path]] = {
    "visual.": lambda d: write(visual(state()), d / "a.pt"),
    "no prefix": lambda d: write(
        {name.removeprefix("visual."): value for name, value in visual(state()).items()}, d / "a.safetensors"
    ),
    "CLIPVisionModelWithProjection": lambda d: write(hugging_face(visual(state())), d / "a.safetensors"),
    "the same without its prefix": lambda d: write(
        {n.removeprefix("vision_model."): v for n, v in hugging_face(visual(state())).items()}, d / "a.pt"
    ),
}


def scripted(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        torch.jit.save(torch.jit.script(tower(NAME)), path)
    return path


def old_file(path: Path) -> Path:
    torch.save(state(), path, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.parametrize("form", WHOLE)
def test_a_whole_model_in_any_form_computes_the_same(tmp_path: Path, form: str) -> None:
    found = built(WHOLE[form](tmp_path))
    model = tower(NAME)
    exact = form not in ("openai torchscript", "bfloat16")
    tolerance = 0.0 if exact else 2e-2
    for name, value in model.visual.state_dict().items():
        torch.testing.assert_close(found.tower.state_dict()[name], value, atol=tolerance, rtol=tolerance)
    reference = built(write(state(), tmp_path / "reference.pt"))
    images = noise(64, 80)
    torch.testing.assert_close(found(images).dense, reference(images).dense, atol=tolerance, rtol=tolerance)
    texts = [backbone.text_tower().encode(SENTENCES) for backbone in (found, reference)]
    torch.testing.assert_close(*texts, atol=tolerance, rtol=tolerance)
    assert {value.dtype for value in found.parameters()} == {torch.float32}
    assert found.report.has_text
    assert found.report.missing == ()


@pytest.mark.parametrize("form", ALONE)
def test_an_image_tower_alone_is_whole_and_has_no_text_tower(tmp_path: Path, form: str) -> None:
    found = built(ALONE[form](tmp_path))
    expected = tower(NAME).visual.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.tower.state_dict().items())
    assert found.text_tower() is None  # it would be random
    with pytest.raises(UserError, match=r"no text tower: set text\.file"):
        text_prototypes(TextConfig(), class_set("camvid11"), found)


@pytest.mark.parametrize("form", ["torchscript", "alone"])
def test_resnets_too(tmp_path: Path, form: str) -> None:
    model = tower("tiny-rn-quickgelu")
    if form == "torchscript":
        file = torchscript(model, tmp_path / "RN.pt", half=False)
    else:
        file = write(
            {n.removeprefix("visual."): v for n, v in visual(model.state_dict()).items()}, tmp_path / "a.pt"
        )
    found = built(file, "tiny-rn-quickgelu").tower.state_dict()
    expected = model.visual.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize("name", ["tiny-eva", "tiny-convnext"])
def test_towers_of_timm_alone(tmp_path: Path, name: str) -> None:
    model = tower(name)
    file = write(model.visual.state_dict(), tmp_path / "a.safetensors")
    found, expected = built(file, name).tower.state_dict(), model.visual.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_positions_are_resized_to_the_models_grid_in_any_form(tmp_path: Path) -> None:
    smaller = {
        "options": {
            "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 3}
        }
    }
    first = built(write({n: v.half() for n, v in state().items()}, tmp_path / "a.pt"), **smaller)
    second = built(write(hugging_face(state()), tmp_path / "b.safetensors"), **smaller)
    assert first.tower.positional_embedding.shape == (5, 32)
    torch.testing.assert_close(
        first.tower.positional_embedding, second.tower.positional_embedding, atol=1e-3, rtol=1e-3
    )


def test_what_was_loaded_is_reported(tmp_path: Path) -> None:
    report = built(torchscript(tower(NAME), tmp_path / "a.pt")).report
    assert report.form == "TorchScript archive with open_clip's names, float16 (converted to float32)"
    assert report.used == report.tensors - 4
    assert sorted(report.left_over) == ["attn_mask", "context_length", "input_resolution", "vocab_size"]
    assert report.activation == "QuickGELU, as the file itself says"
    report = built(write(visual(state()), tmp_path / "b.pt")).report
    assert report.activation == f"QuickGELU by model.backbone.name={NAME} and options: the file does not say"
    assert len(report.missing) == 17
    assert not any(name.startswith("visual.") for name in report.missing)
    assert "missing: positional_embedding, text_projection," in report.text()
    weights = state()
    weights["visual.transformer.resblocks.0.mlp.c_fc.weight"].zero_()
    report = built(write(weights, tmp_path / "c.pt")).report
    assert report.zeros == ("visual.transformer.resblocks.0.mlp.c_fc.weight",)


def test_the_log_calls_weights_random_only_where_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(state(), tmp_path / "a.pt")
    caplog.clear()
    built(file)
    build_backbone(BackboneConfig(name=NAME, pretrained=str(file)), load_weights=False)
    assert "No pretrained weights" not in caplog.text
    build_backbone(BackboneConfig(name=NAME))
    assert "Model initialized randomly" in caplog.text


def test_an_archive_of_openais_needs_quickgelu(tmp_path: Path) -> None:
    message = refused(torchscript(tower(NAME), tmp_path / "a.pt"), "tiny-vit")
    assert message.endswith("but tiny-vit uses GELU; set model.backbone.name: tiny-vit-quickgelu")
    message = refused(torchscript(tower("tiny-rn-quickgelu"), tmp_path / "b.pt"), "tiny-rn")
    assert message.endswith("set model.backbone.name: tiny-rn-quickgelu")  # for its text tower
    # A state dict names no activation, but these numbers are in OpenAI's alone.
    plain = {name: value.half() for name, value in state("tiny-vit-custom").items()}
    message = refused(
        write(plain | {"input_resolution": torch.tensor(64)}, tmp_path / "c.pt"), "tiny-vit-custom"
    )
    assert message.endswith("set model.backbone.options: {quick_gelu: true}")
    built(tmp_path / "c.pt", "tiny-vit-custom", options={"quick_gelu": True})
    message = refused(torchscript(tower("tiny-vit"), tmp_path / "d.pt", openai=False), NAME)
    assert message.endswith("uses QuickGELU; set model.backbone.name: tiny-vit")


@pytest.mark.parametrize(
    ("beside", "tree", "quick"),
    [
        ("config.json", {"model_type": "clip", "vision_config": {"hidden_act": "quick_gelu"}}, True),
        ("config.json", {"model_type": "clip", "vision_config": {}}, True),  # the usual one is left out
        ("config.json", {"model_type": "clip_vision_model", "hidden_act": "gelu"}, False),
        ("config.json", {"model_type": "bert", "hidden_act": "gelu"}, None),
        ("open_clip_config.json", {"model_cfg": {"quick_gelu": True}}, None),  # not of this file
    ],
)
def test_the_configuration_beside_hugging_faces_file(
    tmp_path: Path, beside: str, tree: dict[str, Any], quick: bool | None
) -> None:
    file = write(hugging_face(state()), tmp_path / "model.safetensors")
    (tmp_path / beside).write_text(json.dumps(tree), encoding="utf-8")
    for name, uses in (("tiny-vit", False), (NAME, True)):
        if quick is None or quick == uses:
            assert ("the file does not say" in built(file, name).report.activation) == (quick is None)
        else:
            wanted = NAME if quick else "tiny-vit"
            assert refused(file, name).endswith(f"set model.backbone.name: {wanted}")


def test_the_configuration_beside_open_clips_file(tmp_path: Path) -> None:
    file, beside = (
        write(state(), tmp_path / "open_clip_model.safetensors"),
        tmp_path / "open_clip_config.json",
    )
    beside.write_text('{"model_cfg": {"quick_gelu": true}}', encoding="utf-8")
    assert built(file).report.activation == f"QuickGELU, as {beside} says"
    assert "tiny-vit-quickgelu" in refused(file, "tiny-vit")
    beside.write_text('{"model_cfg": {}}', encoding="utf-8")
    assert built(file, "tiny-vit").report.activation == f"GELU, as {beside} says"
    beside.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"open_clip_config.json.*correct it or take it away"):
        built(file)
    odd = write(hugging_face(state()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        '{"model_type": "clip", "hidden_act": "gelu_new"}', encoding="utf-8"
    )
    with pytest.raises(UserError, match="hidden_act is gelu_new; gelu or quick_gelu is possible"):
        built(odd)


def test_a_file_never_changes_the_activation_that_the_configuration_says(tmp_path: Path) -> None:
    file = write(hugging_face(state()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}', encoding="utf-8")
    config = BackboneConfig(name=NAME, pretrained=str(file))
    images, there = noise(64, 64), built(file)
    file.unlink()
    elsewhere = build_backbone(config, load_weights=False).eval()
    elsewhere.load_state_dict(there.state_dict())
    assert torch.equal(elsewhere(images).dense, there(images).dense)


def test_files_that_are_no_weights_are_described(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    accepted = "accepted are OpenAI's TorchScript archive"
    for content, cause in {
        b"": "it is empty",
        b"version https://git-lfs.github.com/spec/v1": "it begins with b'version https://git-lfs",
        b"<!DOCTYPE html><html>": "it begins with b'<!DOCTYPE html>",
    }.items():
        file.write_bytes(content)
        assert cause in refused(file)
        assert accepted in refused(file)
    write(state(), file)
    file.write_bytes(file.read_bytes()[:5000])
    assert "cannot be read as" in refused(file)
    write(state(), tmp_path / "b.safetensors")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes()[:5000])
    assert "cannot be read as safetensors" in refused(tmp_path / "b.safetensors")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("picture.png", b"")
    assert "it is a zip file with picture.png" in refused(file)
    torch.save({"epoch": 3, "model": {"a": torch.ones(2)}}, file)
    assert "it holds no tensors by name, but epoch (int), model (dict)" in refused(file)
    torch.save(torch.ones(3), file)
    assert "no tensors by name, but Tensor" in refused(file)


def test_weights_of_another_model_are_compared(tmp_path: Path) -> None:
    message = refused(write(state("tiny-rn"), tmp_path / "a.pt"))
    assert "missing: visual.class_embedding, visual.positional_embedding, visual.proj and" in message
    assert "left over: visual.bn1.weight" in message
    assert "another shape: visual.conv1.weight (4, 3, 3, 3) instead of (32, 3, 16, 16)" in message
    assert "accepted are" in message
    weights = state()
    del weights["text_projection"]
    assert "does not fit tiny-vit-quickgelu: missing: text_projection; give" in refused(
        write(weights, tmp_path / "b.pt")
    )
    more = state() | {"visual.extra.weight": torch.ones(2, 2)}
    assert "left over: visual.extra.weight;" in refused(write(more, tmp_path / "c.pt"))
    no_head = hugging_face(visual(state()))
    del no_head["visual_projection.weight"]
    assert "visual.proj, the projection to the joint space" in refused(write(no_head, tmp_path / "d.pt"))
    lacks_key = hugging_face(state())
    del lacks_key["vision_model.encoder.layers.1.self_attn.k_proj.bias"]
    assert "cannot be translated ('self_attn.k_proj')" in refused(write(lacks_key, tmp_path / "e.pt"))
    text_alone = {name: value for name, value in state().items() if not name.startswith("visual.")}
    assert "missing: visual.class_embedding" in refused(write(text_alone, tmp_path / "f.pt"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    weights = state()
    weights["visual.transformer.resblocks.1.ln_1.bias"][3] = value
    for file in (write(weights, tmp_path / "a.pt"), write(hugging_face(weights), tmp_path / "b.safetensors")):
        assert "weights are not finite in" in refused(file)
    assert "resblocks.1.ln_1.bias" in refused(tmp_path / "a.pt")


def test_the_program_of_an_archive_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("loaded as a program")

    file = torchscript(tower(NAME), tmp_path / "a.pt")
    monkeypatch.setattr(torch.jit, "load", never)
    built(file)
    mark, bad = tmp_path / "owned", tmp_path / "bad.pt"
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(bad, "w") as copy:
        for name in whole.namelist():
            content = pickle.dumps(Bomb(mark), protocol=2) if name == "a/data.pkl" else whole.read(name)
            copy.writestr(name, content)
    assert "Python objects, which could run code" in refused(bad)
    assert not mark.exists()
    pickle.load(io.BytesIO(zipfile.ZipFile(bad).read("a/data.pkl")))
    assert mark.exists()  # the file is what it is said to be


def test_a_tower_without_dense_features_is_refused_when_built() -> None:
    name = "vit_relpos_medium_patch16_cls_224"
    text = {"text_cfg": {"width": 16, "heads": 2, "layers": 1}}
    with pytest.raises(UserError, match=rf"model.backbone.name={name}: .*use a ResNet, ViT"):
        build_backbone(BackboneConfig(name=name, options=text), load_weights=False)


def test_a_timm_trunk_of_multiples_alone_is_padded_and_one_without_maps_is_refused() -> None:
    backbone = build_backbone(BackboneConfig(kind="timm", name="hrnet_w18_small", embed_dim=8)).eval()
    images = torch.randint(0, 256, (1, 3, 36, 50), dtype=torch.uint8)
    assert backbone.prepare(images).shape[2:] == (64, 64)
    assert backbone.dense_features(images).shape[:2] == (1, 8)
    with pytest.raises(UserError, match=r"name=maxvit_rmlp_pico_rw_256: "):
        build_backbone(BackboneConfig(kind="timm", name="maxvit_rmlp_pico_rw_256", embed_dim=8))


def test_a_timm_trunks_file_is_reported_and_its_values_checked(tmp_path: Path) -> None:
    import timm

    weights = timm.create_model("convnext_atto", num_classes=7).state_dict()
    config = {"kind": "timm", "embed_dim": 8}
    report = built(write(weights, tmp_path / "a.safetensors"), "convnext_atto", **config).report
    assert (report.form, report.tensors) == ("safetensors with timm's names, float32", len(weights))
    weights["stem.0.bias"][0] = float("nan")
    with pytest.raises(UserError, match=r"b.pt: weights are not finite in stem.0.bias"):
        built(write(weights, tmp_path / "b.pt"), "convnext_atto", **config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if v.ndim != 1}, "does not hold conv1.1.weight of resnet10t"),
        (lambda w: {k: v for k, v in w.items() if "running" not in k}, "does not hold conv1.1.running_mean"),
        (
            lambda w: {k: v for k, v in w.items() if k != "layer2.0.bn1.bias"},
            "layer2.0.bn1.bias of resnet10t",
        ),
        (
            lambda w: {k: (99 * v).to(torch.int8) for k, v in w.items()},
            "(safetensors with timm's names, int8) does",
        ),
        (
            lambda w: w | {"bn1.running_var": -w["bn1.running_var"]},
            "a variance is at least 0, but bn1.running",
        ),
        (lambda w: {k: torch.zeros_like(v) for k, v in w.items()}, "all of its weights are 0"),
    ],
)
def test_all_of_a_timm_trunk_comes_from_its_file(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    """Also values that a fresh model has: of its own BatchNorm, nothing is missing."""
    import timm

    model = timm.create_model("resnet10t", num_classes=7)
    config = {"kind": "timm", "embed_dim": 8}
    whole = built(write(model.state_dict(), tmp_path / "a.safetensors"), "resnet10t", **config)
    assert torch.equal(whole.tower.layer2[0].conv1.weight, model.layer2[0].conv1.weight)
    assert all(not vars(part).get("pretrained_cfg", {}).get("state_dict") for part in whole.modules())
    with pytest.raises(UserError, match=re.escape(message)):
        built(write(change(model.state_dict()), tmp_path / "b.safetensors"), "resnet10t", **config)


def test_the_entry_that_a_timm_file_was_read_from_is_told(tmp_path: Path) -> None:
    import timm

    last, average = (timm.create_model("convnext_atto", num_classes=7).state_dict() for _ in range(2))
    torch.save({"state_dict": {f"module.{k}": v for k, v in last.items()}}, tmp_path / "a.pt")
    torch.save({"state_dict": last, "state_dict_ema": average, "epoch": 3}, tmp_path / "b.pt")
    for file, entry, weights in (("a.pt", "state_dict", last), ("b.pt", "state_dict_ema", average)):
        found = built(tmp_path / file, "convnext_atto", kind="timm", embed_dim=8)
        assert found.report.form.startswith(f"state dict under {entry} with timm's names")
        assert torch.equal(found.tower.stem_0.weight, weights["stem.0.weight"])


def test_a_timm_file_that_is_no_weights_is_described_in_the_same_words(tmp_path: Path) -> None:
    for name in ("page.pt", "page.safetensors", "page"):
        (tmp_path / name).write_bytes(b"<!DOCTYPE html><html>")
        with pytest.raises(UserError, match=r"it begins with b'<!DOCTYPE html>.*; accepted are a state dict"):
            built(tmp_path / name, "convnext_atto", kind="timm", embed_dim=8)


def test_quantised_and_empty_weights_are_refused(tmp_path: Path) -> None:
    quantised = {k: (99 * v).to(torch.int8) if v.is_floating_point() else v for k, v in state().items()}
    message = refused(write(quantised, tmp_path / "a.pt"))
    assert "state dict with open_clip's names, int8" in message
    assert "no floats, as quantised weights are none: positional_embedding (int8)" in message
    one = state() | {"visual.proj": state()["visual.proj"].to(torch.int8)}
    assert "are none: visual.proj (int8); give" in refused(write(one, tmp_path / "b.pt"))
    nothing = {k: torch.zeros_like(v) for k, v in state().items()}
    assert "all of its weights are 0" in refused(write(nothing, tmp_path / "c.pt"))
