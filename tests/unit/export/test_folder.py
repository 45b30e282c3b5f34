"""A model folder stands alone: it predicts bit for bit what the run does, and damage is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ppar_dist.checkpoint.layout import sealed
from ppar_dist.config.load import parse_config
from ppar_dist.config.method_section import RefitConfig
from ppar_dist.doctor.describe import inspect
from ppar_dist.errors import UserError
from ppar_dist.evaluation.evaluate import score
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.evaluation.predict import predict
from ppar_dist.export import export
from ppar_dist.export.card import model_card
from ppar_dist.export.folder import portable
from ppar_dist.files import durable
from tests.unit.export.models import ATTO
from tests.unit.export.models import make_run as make_small_run
from tests.unit.models import tiny_clip
from tests.unit.tiny_run import make_config, make_run

FILES = {
    "README.md",
    "classes.json",
    "config.json",
    "manifest.json",
    "model.safetensors",
    "preprocessing.json",
    "state.json",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was scored, its data, and the folder made of it."""
    root = tmp_path_factory.mktemp("home-of-somebody")
    targets = {"targets": {"b": str(root / "data" / "b")}}
    make_run(root / "data", root / "run", **targets)
    score(root / "run", {"night | dark": root / "data" / "b"})
    export(root / "run", root / "model")
    return root


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> Path:
    """The folder alone, elsewhere."""
    shutil.copytree(root / "model", tmp_path / "copied")
    return tmp_path / "copied"


def test_it_predicts_bit_for_bit_what_the_run_does(root: Path, copied: Path, tmp_path: Path) -> None:
    assert {file.name for file in copied.iterdir()} == FILES
    of_run, of_folder = load_segmentor(root / "run")[0], load_segmentor(copied)[0]
    images = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8)
    expected, found = of_run(images), of_folder(images)
    assert torch.equal(expected.logits, found.logits)
    assert torch.equal(expected.dense, found.dense)
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    for name, path in (("run", root / "run"), ("folder", copied)):
        predict(path, [tmp_path / "a.png"], tmp_path / name)
    labels = [np.asarray(Image.open(tmp_path / name / "a.png")) for name in ("run", "folder")]
    assert np.array_equal(*labels)


def test_adapters_are_merged(tmp_path: Path) -> None:
    tiny_clip.register(tmp_path)
    backbone = {"kind": "open_clip", "name": "tiny-vit", "trainable": "lora"}
    make_small_run(tmp_path / "run", backbone)
    export(tmp_path / "run", tmp_path / "model")
    assert not [name for name in load_file(tmp_path / "model" / "model.safetensors") if "lora" in name]
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    of_run, of_folder = (load_segmentor(tmp_path / name)[0](images) for name in ("run", "model"))
    assert torch.equal(of_run.logits, of_folder.logits)


@pytest.mark.parametrize(
    ("refitted", "said"),
    [
        (None, "of the network; the checkpoint is from before the refit at the end of the run"),
        ({"step": 4}, "classifier fitted again to whole images, corrected by prototypes of its image"),
    ],
)
def test_the_card_tells_what_the_refit_did(
    root: Path, tmp_path: Path, refitted: dict[str, Any] | None, said: str
) -> None:
    _, config, classes, _ = load_segmentor(root / "model")
    asked = config.model_copy(update={"refit": RefitConfig(linear=True, prototypes=True)})
    card = model_card(tmp_path, asked, classes, {}, {"step": 4, "refitted": refitted})
    assert f"| prediction | {said} |" in card


def test_it_is_scored_as_the_run_is_and_is_not_written_into(root: Path, copied: Path) -> None:
    target = {"b": root / "data" / "b"}
    assert score(copied, target).targets == score(root / "run", target).targets
    assert {file.name for file in copied.iterdir()} == FILES


def test_inspect_tells_what_it_is(copied: Path) -> None:
    facts = inspect(copied)
    assert facts["whole"]
    assert facts["manifest"]["kind"] == "model"


def test_no_file_tells_where_it_was_made(root: Path, copied: Path) -> None:
    assert str(root) in (root / "run" / "config.yaml").read_text()
    for file in copied.iterdir():
        assert b"home-of-somebody" not in file.read_bytes(), file


def test_of_a_url_the_last_name_stays_as_of_a_path(tmp_path: Path) -> None:
    targets = {"night": "s3://somebodys-bucket/private/dusk", "day": "/home/somebody/noon"}
    told = portable(make_config(tmp_path, tmp_path / "run", targets=targets))
    assert told["targets"] == {"night": "dusk", "day": "noon"}
    assert "somebody" not in json.dumps(told)


@pytest.mark.parametrize("name", sorted(FILES - {"README.md", "manifest.json"}))
def test_a_damaged_file_is_named(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(bytes(content))
    with pytest.raises(UserError, match=name):
        load_segmentor(copied)


@pytest.mark.parametrize("name", sorted(FILES - {"README.md"}))
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(UserError, match=name):
        load_segmentor(copied)


def test_the_card_may_be_edited(copied: Path) -> None:
    (copied / "README.md").write_text("mine")
    load_segmentor(copied)


def seal(folder: Path, drop: str | None = None) -> None:
    """As somebody would who wants a changed folder to be taken."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        size, sha256 = durable.fingerprint(folder / name)
        manifest["files"][name] = {"bytes": size, "sha256": sha256}
    manifest["files"].pop(drop, None)
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))


def change(folder: Path, name: str, key: str, value: Any) -> None:
    tree = json.loads((folder / name).read_text())
    node = tree
    *sections, last = key.split(".")
    for section in sections:
        node = node[section]
    node[last] = value
    (folder / name).write_text(json.dumps(tree))
    seal(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.backbone.options", {"checkpoint_path": "evil.pth"}, "options.checkpoint_path=evil.pth reads"),
        ("model.backbone.options", {"a": [{"pretrained": True}]}, "pretrained=True reads another file"),
        ("model.backbone.options", {"a": {"b": "hf-hub:x/y"}}, "hf-hub:x/y reads another file"),
        ("model.backbone.name", "local-dir:/tmp/evil", "architecture from elsewhere"),
        ("model.backbone.kind", "os", "backbone.kind"),
        ("surprise", 1, "surprise"),
    ],
)
def test_a_configuration_that_fetches_or_is_wrong_is_refused(
    copied: Path, key: str, value: Any, message: str
) -> None:
    change(copied, "config.json", key, value)
    with pytest.raises(UserError, match=message):
        load_segmentor(copied)


@pytest.mark.parametrize(
    ("key", "value"), [("palette", [[0, 0, 256]] * 6), ("classes", ["road"]), ("members", 3)]
)
def test_a_class_set_that_is_wrong_is_refused(copied: Path, key: str, value: Any) -> None:
    change(copied, "classes.json", key, value)
    with pytest.raises(UserError, match=r"classes\.json is not a class set"):
        load_segmentor(copied)


def test_what_the_manifest_does_not_vouch_for_is_not_read(copied: Path) -> None:
    shutil.copy(copied / "model.safetensors", copied / "frozen.safetensors")
    with pytest.raises(UserError, match=r"frozen\.safetensors is not in the folder's manifest"):
        load_segmentor(copied)
    (copied / "frozen.safetensors").unlink()
    seal(copied, drop="config.json")
    with pytest.raises(UserError, match=r"config\.json is not in the folder's manifest"):
        load_segmentor(copied)


def test_weights_that_are_a_pickle_are_refused(copied: Path) -> None:
    torch.save({"a": torch.zeros(1)}, copied / "model.safetensors")
    seal(copied)
    with pytest.raises(UserError, match="cannot read"):
        load_segmentor(copied)


def test_the_card_tells_data_scores_and_what_is_to_be_filled_in(root: Path) -> None:
    card = huggingface_hub.ModelCard.load(root / "model" / "README.md")
    assert card.data.to_dict()["pipeline_tag"] == "image-segmentation"
    assert card.data.library_name == "ppar_dist"
    assert card.data.license is None  # for the user to choose
    table = json.loads((root / "run" / "results.json").read_text())["targets"]["night | dark"]
    lines = card.text.splitlines()
    assert "| a | 4 | 1 | **fill in** |" in lines
    miou, accuracy = (f"{100 * table[name]:.1f}" for name in ("miou", "pixel_accuracy"))
    assert f"| night \\| dark | 5 | {miou} | {accuracy} |  |" in lines
    assert f"| road | {100 * table['iou']['road']:.1f} |" in lines
    assert "| car | - |" in lines  # it occurs in no image


def test_a_card_of_what_was_never_scored_says_so(tmp_path: Path) -> None:
    make_small_run(tmp_path / "run", ATTO)
    export(tmp_path / "run", tmp_path / "model")
    text = (tmp_path / "model" / "README.md").read_text()
    assert "this checkpoint was not evaluated" in text
    assert "| a | unknown (shards not found) | unknown |" in text
    assert "| ranks | 2 |" in text


def test_it_is_written_whole_or_not_at_all(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "sync", full)
    with pytest.raises(OSError, match="No space"):
        export(root / "run", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_one_model_has_no_best(root: Path, copied: Path) -> None:
    for one in (copied, root / "run" / "checkpoints" / "step-00000040"):
        with pytest.raises(UserError, match="which=best chooses among the checkpoints of a run"):
            load_segmentor(one, which="best")
        assert load_segmentor(one)[3] == one


def test_the_card_asks_for_no_licence_of_weights_that_there_are_not(copied: Path) -> None:
    card = (copied / "README.md").read_text()
    assert "| pretrained weights | none, from random initialisation |" in card


def test_out_is_not_overwritten_and_formats_are_told_apart(root: Path, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a model folder already.*--overwrite"):
        export(root / "run", copied)
    with pytest.raises(UserError, match="is a model folder already"):
        export(copied, tmp_path / "again")
    with pytest.raises(UserError, match=r"ends in \.onnx, \.pt2, \.safetensors"):
        export(root / "run", tmp_path / "model.onx")
    with pytest.raises(UserError, match=r"as tower ends in \.safetensors"):
        export(root / "run", tmp_path / "model.pt2", "tower")
    with pytest.raises(UserError, match="--size fixes an onnx or pt2 file"):
        export(root / "run", tmp_path / "again", size=(64, 64))
    with pytest.raises(UserError, match="no folder"):
        export(root / "run", tmp_path / "nowhere" / "model")
    (tmp_path / "empty").mkdir()
    assert export(root / "run", tmp_path / "empty").format == "folder"


def test_an_architecture_from_elsewhere_is_not_exported(tmp_path: Path) -> None:
    make_small_run(tmp_path / "run", ATTO)
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("    options:\n", "    options:\n      cache_dir: /tmp/x\n"))
    with pytest.raises(UserError, match="cache_dir=/tmp/x reads another file"):
        export(tmp_path / "run", tmp_path / "model")


def test_of_a_run_with_data_in_a_bucket_the_bucket_is_not_told(tmp_path: Path) -> None:
    bucket = "s3://bucket-of-somebody"
    data = {"root": f"{bucket}/shards", "classes": "roads6", "sources": ["a"], "size": 96, "crop": [32, 32]}
    config = make_small_run(
        *(tmp_path / "run", ATTO),
        data=data,
        targets={"b": f"{bucket}/night"},
        init_from=f"{bucket}/before",
        checkpoint={"remote": f"{bucket}/run"},
    )
    written = portable(config)
    assert "somebody" not in json.dumps(written)
    assert parse_config(written).model == config.model
    assert (written["data"]["root"], written["targets"], written["init_from"]) == (
        "shards",
        {"b": "night"},
        "before",
    )
