"""A model in Python labels as the command does, in whatever form an image comes, and is a good guest."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ppar_dist
from ppar_dist.evaluation.confidence import confidence_of
from ppar_dist.evaluation.evaluate import evaluate
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.evaluation.predict import predict
from ppar_dist.export import export
from tests.unit.tiny_run import CLASSES, WIDTH, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("api")
    make_run(root / "shards", root / "run", steps=(20, 40))
    return root / "run"


@pytest.fixture(scope="module")
def model(run: Path) -> ppar_dist.Model:
    return ppar_dist.load(str(run), "cpu")


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_it_tells_what_it_is(model: ppar_dist.Model, run: Path) -> None:
    assert model.classes == CLASSES.classes
    assert model.palette == CLASSES.palette
    assert model.device == torch.device("cpu")
    assert model.path == run / "checkpoints" / "step-00000040"
    assert "convnext_atto" in repr(model)
    assert ppar_dist.load(run, which="best").path.name == "step-00000020"
    assert model.to("cpu") is model


def test_every_form_of_an_image_gives_the_labels_of_the_command(
    model: ppar_dist.Model, run: Path, tmp_path: Path
) -> None:
    image = pixels(38, 50)
    file = tmp_path / "street.png"
    Image.fromarray(image).save(file)
    predict(run, [file], tmp_path / "out")
    expected = np.asarray(Image.open(tmp_path / "out" / "street.png"))
    for form in (image, np.asfortranarray(image), Image.fromarray(image), Image.open(file), file, str(file)):
        labels = model.predict(form)
        assert labels.dtype == np.uint8
        assert np.array_equal(labels, expected)


def test_a_batch_is_each_of_its_images(model: ppar_dist.Model) -> None:
    images = [pixels(38, 50, 1), pixels(60, 20, 2), pixels(38, 50, 3), pixels(76, 100, 4)]
    for image, labels in zip(images, model.predict_batch(images), strict=True):
        assert labels.shape == image.shape[:2]
        assert (labels == model.predict(image)).mean() > 0.999  # another batch may round in another way
    assert model.predict_batch([]) == []


def test_confidence_is_the_softmax_at_each_pixel(model: ppar_dist.Model, run: Path) -> None:
    image = pixels(16, 24)  # the model sees it as it is
    labels, confidence = model.predict(image, confidence=True)
    segmentor, *_ = load_segmentor(run)
    logits = segmentor(torch.from_numpy(image).permute(2, 0, 1)[None]).logits
    resized = torch.nn.functional.interpolate(logits, (16, 24), mode="bilinear", align_corners=False)
    chosen = resized.softmax(1)[0].numpy()
    assert confidence.dtype == np.float32
    assert np.allclose(confidence, np.take_along_axis(chosen, labels[None].astype(int), 0)[0], atol=1e-6)
    again = model.predict_batch([image], confidence=True)
    assert np.array_equal(again[0][1], confidence)


def test_confidence_in_strips_is_confidence_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(6, 9, 13)
    whole = confidence_of(logits, (33, 50))
    monkeypatch.setattr("ppar_dist.evaluation.confidence._TILE", 6 * 33 * 7)
    assert torch.allclose(confidence_of(logits, (33, 50)), whole, atol=1e-6)


def test_features_are_those_of_the_joint_space(model: ppar_dist.Model, run: Path) -> None:
    image = pixels(16, 24)
    features = model.features(image)
    segmentor, *_ = load_segmentor(run)
    expected = segmentor(torch.from_numpy(image).permute(2, 0, 1)[None]).dense[0]
    assert features.shape == (WIDTH, 1, 2)
    assert np.allclose(features, expected.numpy(), atol=1e-6)


def test_scores_are_those_of_the_command(model: ppar_dist.Model, run: Path) -> None:
    target = run.parent / "shards" / "a"
    results = model.evaluate({"a": str(target)})
    assert isinstance(results, ppar_dist.Results)
    assert results == evaluate(run, {"a": target})
    assert model.evaluate({"a": target}, size=8).targets != results.targets
    assert not (run / "results.json").exists()


def test_a_model_folder_is_loaded_alike(model: ppar_dist.Model, run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "model")
    image = pixels(38, 50)
    assert np.array_equal(ppar_dist.load(tmp_path / "model").predict(image), model.predict(image))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"\(H, W, 3\) uint8 RGB, got \(4, 4\) uint8"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros((2, 1000, 3), np.uint8), "at most 200 times the other, got 1000x2"),
        ("nowhere.png", "nowhere.png"),
    ],
)
def test_what_is_no_image_is_refused(model: ppar_dist.Model, image: object, message: str) -> None:
    with pytest.raises(ppar_dist.UserError, match=message):
        model.predict(image)  # type: ignore[call-overload]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ppar_dist.UserError, match="no run or checkpoint"):
        ppar_dist.load(tmp_path / "nowhere")


def test_it_works_in_a_loop_that_runs_and_in_another_thread(model: ppar_dist.Model) -> None:
    """As in a notebook, whose cells run in an event loop."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    environment = dict(os.environ)

    async def cell() -> list[np.ndarray]:
        image = pixels(38, 50)
        return [model.predict(image), await asyncio.to_thread(model.predict, image)]

    here, there = asyncio.run(cell())
    assert np.array_equal(here, there)
    assert {number: signal.getsignal(number) for number in before} == before
    assert dict(os.environ) == environment


def test_the_names_are_listed_and_others_are_not_there() -> None:
    assert set(ppar_dist.__all__) <= set(dir(ppar_dist))
    for name in ppar_dist.__all__:
        assert getattr(ppar_dist, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        ppar_dist.fly  # noqa: B018


@pytest.mark.process
def test_the_import_loads_neither_torch_nor_a_module_of_the_package() -> None:
    code = "import sys, ppar_dist; print([m for m in sys.modules if m.startswith(('torch', 'ppar_dist.'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"which": "Best"}, "which is one of latest, best, got 'Best'"),
        ({"weights": "avg"}, "weights is one of raw, averaged, got 'avg'"),
        ({"device": "gpu"}, "a device is cpu, cuda or cuda:NUMBER, got 'gpu'"),
        ({"device": "cuda:99"}, "so there is no cuda:99"),
    ],
)
def test_a_choice_that_there_is_not_is_refused(run: Path, wrong: dict[str, str], message: str) -> None:
    with pytest.raises(ppar_dist.UserError, match=message):
        ppar_dist.load(run, **wrong)  # type: ignore[arg-type]


def test_another_kind_of_thing_is_refused(model: ppar_dist.Model) -> None:
    for wrong in (None, 5, torch.zeros(3, 8, 8)):
        with pytest.raises(ppar_dist.UserError, match="an image is a path, a Pillow image or an array"):
            model.predict(wrong)  # type: ignore[arg-type]
    for one in ("a.jpg", None, 5):
        with pytest.raises(ppar_dist.UserError, match="predict_batch takes several images"):
            model.predict_batch(one)  # type: ignore[call-overload]
    with pytest.raises(ppar_dist.UserError, match="give each folder a name"):
        model.evaluate("shards/a")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.predict(pixels(8, 8), "yes"), "confidence is True or False, got 'yes'"),
        (lambda model: model.predict_batch([pixels(8, 8)], 1), "confidence is True or False, got 1"),
        (lambda model: model.predict(pixels(8, 8), value_range=(9, 3)), r"value_range is \(low, high\)"),
        (lambda model: model.features(pixels(8, 8), value_range="0 9"), r"value_range is \(low, high\)"),
        (lambda model: model.evaluate({}), "targets are"),
        (lambda model: model.evaluate({1: "a"}), "the name of a target is text, got 1"),
        (lambda model: model.evaluate({"a": None}), "the folder of target a is a path, got None"),
        (lambda model: model.evaluate({"a": "b"}, flip="yes"), "flip is true or false, got 'yes'"),
        (lambda model: model.evaluate({"a": "b"}, flipp=True), "unknown key flipp; did you mean flip"),
        (lambda _: ppar_dist.load(None), "path is a path, got None"),
        (lambda _: ppar_dist.load(""), "path is a path, got ''"),
        (lambda _: ppar_dist.train(None), r"config is a YAML file, .*\(.*demo, .*roads.*\), .* got None"),
        (lambda _: ppar_dist.train("nope"), "cannot read config nope: .* the package has .*demo, .*roads"),
        (lambda _: ppar_dist.train("demo", nproc="2"), "nproc is a whole number, at least 1, got '2'"),
        (lambda _: ppar_dist.train("demo", nproc=True), "nproc is a whole number"),
        (lambda _: ppar_dist.train("demo", quiet="no"), "quiet is True or False, got 'no'"),
        (lambda _: ppar_dist.train("demo", accept_changes=1), "accept_changes is True or False, got 1"),
        (lambda _: ppar_dist.train("demo", launcher="mpirun"), "launcher is one of deepspeed, torchrun"),
    ],
)
def test_every_argument_is_held_to_its_type(
    model: ppar_dist.Model, call: Callable[[ppar_dist.Model], object], message: str
) -> None:
    with pytest.raises(ppar_dist.UserError, match=message):
        call(model)


def test_an_image_of_16_bits_needs_its_range_which_is_told_as_an_argument(
    model: ppar_dist.Model, tmp_path: Path
) -> None:
    deep = np.random.default_rng(0).integers(0, 4096, (20, 30), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    with pytest.raises(ppar_dist.UserError, match=r"value_range=\(0, 4095\)\), or value_range=\(0, 65535\)"):
        model.predict(tmp_path / "deep.png")
    grey = np.rint(deep * (255 / 4095)).astype(np.uint8)
    expected = model.predict(np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(model.predict(tmp_path / "deep.png", value_range=(0, 4095)), expected)
