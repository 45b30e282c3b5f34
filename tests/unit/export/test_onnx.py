"""An ONNX file gives the model's logits and labels in onnxruntime, on real images of other sizes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from ppar_dist.errors import UserError
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.export import export, onnx_file, program
from ppar_dist.export.exported import ExportedProgram
from ppar_dist.synthetic import DOMAINS, render
from tests.unit.export.models import ATTO, CLASSES, make_run
from tests.unit.models import tiny_clip

PAGE = Path(__file__).parents[3] / "docs" / "export.md"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("onnx")
    tiny_clip.register(root)
    return root


def session(file: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def photos(folder: Path, count: int, size: tuple[int, int]) -> torch.Tensor:
    """Real images (B, 3, H, W) uint8."""
    files = sorted((folder / "data" / "camvid" / "images").glob("*.jpg"))[:count]
    assert len(files) == count
    pixels = [np.asarray(Image.open(file).convert("RGB").resize(size[::-1])) for file in files]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


@pytest.mark.process  # it starts none, but takes too long for `make quick`
@pytest.mark.parametrize(
    ("backbone", "decoder"),
    [
        ({"kind": "open_clip", "name": "tiny-rn"}, "fpn"),
        ({"kind": "open_clip", "name": "tiny-vit"}, "aspp"),  # positions of 4 x 4 patches: down and up
        (ATTO, "aspp"),
    ],
    ids=["resnet", "vit", "timm"],
)
def test_the_graph_gives_the_models_labels(
    backbone: dict[str, Any],
    decoder: str,
    root: Path,
    real_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"{backbone['name']}-{decoder}"
    make_run(root / name, backbone, decoder, refit={"prototypes": backbone is ATTO})
    made = export(root / name, root / f"{name}.onnx")
    assert isinstance(made, ExportedProgram)
    assert (made.multiple, made.opset, made.max_deviation < 1e-3) == (32, 20, True)
    graph, (segmentor, *_) = session(made.file), load_segmentor(root / name)
    for batch, size in ((1, (192, 256)), (3, (160, 64)), (1, (64, 64))):
        images = photos(real_data, batch, size)
        with torch.inference_mode():
            expected = segmentor(images).logits.numpy()
        found = graph.run(None, {"images": images.numpy()})[0]
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-3
        best = np.sort(expected, axis=1)
        clear = best[:, -1] - best[:, -2] > 2e-3  # elsewhere either label is right
        assert clear.mean() > 0.99
        assert np.array_equal(found.argmax(1)[clear], expected.argmax(1)[clear])
    if backbone is ATTO:
        _describes_itself(made)
        _stops_at_other_sizes(graph)
        _does_as_the_page_says(made.file, real_data, tmp_path, monkeypatch)


def _describes_itself(made: ExportedProgram) -> None:
    proto = onnx.load(made.file)
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(facts["classes"]) == list(CLASSES.classes)
    assert json.loads(facts["palette"]) == [list(colour) for colour in CLASSES.palette]
    assert json.loads(facts["preprocessing"])["mean"] == pytest.approx([0.485, 0.456, 0.406])
    sides = [side.dim_param or side.dim_value for side in proto.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["batch", 3, "height", "width"]
    assert b"/ppar_dist/" not in made.file.read_bytes()  # no path of the machine


def _stops_at_other_sizes(graph: Any) -> None:
    """Where the model would give one row more than the graph can."""
    for size in ((65, 96), (96, 100), (32, 64)):
        with pytest.raises(Exception, match="height_and_width_are_multiples_of_32_from_64_on"):
            graph.run(None, {"images": np.zeros((1, 3, *size), np.uint8)})


def _does_as_the_page_says(
    file: Path, real_data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example in docs/export.md runs."""
    shutil.copy(file, folder / "model.onnx")
    street = sorted((real_data / "data" / "camvid" / "images").glob("*.jpg"))[0]
    shutil.copy(street, folder / "street.jpg")
    monkeypatch.chdir(folder)
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, str(PAGE), "exec"), names)
    assert names["logits"].shape == (1, 6, names["height"] // 4, names["width"] // 4)


def test_a_size_may_be_fixed_and_nothing_of_its_nodes_is_told(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    make_run(root / "fixed", ATTO)
    made = export(root / "fixed", root / "fixed.onnx", size=(50, 70))
    assert {record.name.partition(".")[0] for record in caplog.records} <= {"ppar_dist"}
    graph, (segmentor, *_) = session(made.file), load_segmentor(root / "fixed")
    street = torch.from_numpy(render(0, DOMAINS[1], 3, (50, 70))[0]).permute(2, 0, 1)
    images = torch.stack([street, street.flip(2)])
    found = graph.run(None, {"images": images.numpy()})[0]
    assert np.abs(found - segmentor(images).logits.numpy()).max() < 1e-3
    with pytest.raises(Exception, match="dimensions"):
        graph.run(None, {"images": np.zeros((1, 3, 64, 64), np.uint8)})


def test_a_graph_that_deviates_does_not_appear(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(root / "wrong", ATTO)
    convert = onnx_file._converted

    def wrong(*arguments: Any) -> Any:
        proto, opset = convert(*arguments)
        scale = next(each for each in proto.graph.initializer if "weight" in each.name)
        values = onnx.numpy_helper.to_array(scale) * np.float32(1.1)
        scale.CopyFrom(onnx.numpy_helper.from_array(values, scale.name))
        return proto, opset

    monkeypatch.setattr(onnx_file, "_converted", wrong)
    with pytest.raises(RuntimeError, match="graph deviates from the model by"):
        export(root / "wrong", root / "wrong.onnx", size=(64, 64))
    assert not (root / "wrong.onnx").exists()


def test_what_is_missing_or_too_large_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(root / "small", ATTO)
    monkeypatch.setattr(onnx_file, "_LARGEST", 1000)
    with pytest.raises(UserError, match="at most 2 GB"):
        export(root / "small", root / "small.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'ppar-dist\[export\]'"):
        export(root / "small", root / "small.onnx")


def test_the_deviation_is_held_to_the_tolerance() -> None:
    images = torch.zeros(1, 3, 8, 8)
    program.deviation_on(images, lambda x: x, lambda x: x + 0.9e-3, "graph")
    for wrong in (lambda x: x + 1.1e-3, lambda x: x[..., :4], lambda x: x * float("nan")):
        with pytest.raises(RuntimeError, match="deviates"):
            program.deviation_on(images, lambda x: x, wrong, "graph")
