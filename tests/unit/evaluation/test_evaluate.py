from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ppar_dist.checkpoint import list_checkpoints
from ppar_dist.data.reading import eval_samples, read_sample
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.errors import UserError
from ppar_dist.evaluation.counting import confusion, held_out
from ppar_dist.evaluation.evaluate import evaluate, score
from ppar_dist.evaluation.labelling import predict_labels
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.evaluation.prediction_examples import spread
from ppar_dist.evaluation.results import Results, TargetResult, keep_results
from ppar_dist.report.cleaning import results_table
from tests.unit.tiny_run import CLASSES, make_config, make_domain, make_run


class Brightness(nn.Module):
    """Class from brightness alone, on a grid four times coarser than the image."""

    def forward(self, images: Tensor, dense: bool = True) -> SimpleNamespace:
        mean = nn.functional.avg_pool2d(images.float().mean(1, keepdim=True), 4, ceil_mode=True)
        centres = torch.linspace(100, 150, CLASSES.num_classes).view(1, -1, 1, 1)
        return SimpleNamespace(logits=-((mean - centres) ** 2))


def naive_upsample(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation at pixel centres, written from its definition in float64."""
    height, width = logits.shape[1:]
    out = np.zeros((logits.shape[0], *size))
    for y in range(size[0]):
        for x in range(size[1]):
            v = min(max((y + 0.5) * height / size[0] - 0.5, 0), height - 1)
            u = min(max((x + 0.5) * width / size[1] - 0.5, 0), width - 1)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            a, b = v - top, u - left
            out[:, y, x] = (1 - a) * ((1 - b) * logits[:, top, left] + b * logits[:, top, right])
            out[:, y, x] += a * ((1 - b) * logits[:, bottom, left] + b * logits[:, bottom, right])
    return out


def naive_counts(index: DomainIndex, numbers: range, size: int) -> np.ndarray:
    counts = np.zeros((6, 6), dtype=np.int64)
    for sample in eval_samples(index, numbers.start, numbers.stop, size):
        logits = Brightness()(sample.image[None]).logits[0].double().numpy()
        guess = naive_upsample(logits, tuple(sample.label.shape)).argmax(0)
        for truth, predicted in zip(sample.label.numpy().ravel(), guess.ravel(), strict=True):
            if truth != 255:
                counts[truth, predicted] += 1
    return counts


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    for seed, (name, size) in enumerate((("a", 5), ("b", 7), ("night", 3))):
        make_domain(root / name, size, seed)
    return root


def test_confusion_agrees_with_a_naive_loop(domains: Path) -> None:
    index = DomainIndex.open(domains / "night")
    matrix, count = confusion(Brightness(), eval_samples(index, 0, 3, 16), 6)
    expected = naive_counts(index, range(3), 16)
    assert count == 3
    assert expected.sum() > 0
    assert np.abs(matrix.counts.numpy() - expected).sum() <= 2  # ties of rounding


def test_labels_are_judged_at_their_own_size(domains: Path) -> None:
    index = DomainIndex.open(domains / "night")
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    confusion(
        Brightness(),
        eval_samples(index, 0, 3, 16),
        6,
        watch=lambda _, sample, predicted: seen.append((tuple(sample.label.shape), tuple(predicted.shape))),
    )
    assert [label for label, _ in seen] == [tuple(read_sample(index, i).label.shape) for i in range(3)]
    assert all(label == predicted for label, predicted in seen)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_held_out_shares_add_up_to_the_whole(domains: Path, world_size: int) -> None:
    config = make_config(domains, domains / "run")
    config = config.model_copy(update={"data": config.data.model_copy(update={"holdout": 0.4})})
    indexes = [DomainIndex.open(domains / name) for name in "ab"]
    parts = [held_out(Brightness(), config, indexes, rank, world_size) for rank in range(world_size)]
    total = torch.stack([part.counts for part in parts]).sum(0)
    assert total.dtype == torch.int64
    assert torch.equal(total, held_out(Brightness(), config, indexes).counts)
    held = ((indexes[0], (3, 4)), (indexes[1], (4, 5, 6)))
    labelled = [sum(int(index.counts[i].sum()) for i in last) for index, last in held]
    assert total.sum((1, 2)).tolist() == labelled  # the last 40 % of each source and nothing else


def test_evaluate_reports_the_figures_of_its_own_predictions(domains: Path, tmp_path: Path) -> None:
    make_run(domains, tmp_path / "run")
    results = evaluate(tmp_path / "run", {"dark": domains / "night"}, examples=tmp_path / "predictions")
    segmentor, _, _, checkpoint = load_segmentor(tmp_path / "run")
    hits, union, right, total = np.zeros(6), np.zeros(6), 0, 0
    for sample in eval_samples(DomainIndex.open(domains / "night"), 0, 3, 16):
        guess = predict_labels(segmentor, sample.image, tuple(sample.label.shape)).numpy()
        truth = sample.label.numpy()
        right, total = right + (guess == truth).sum(), total + (truth != 255).sum()
        for k in range(6):
            mine, theirs = (guess == k) & (truth != 255), truth == k
            hits[k] += (mine & theirs).sum()
            union[k] += (mine | theirs).sum()
    found = results.targets["dark"]
    assert (found.images, found.domain, results.checkpoint) == (3, "night", checkpoint.name)
    assert found.pixel_accuracy == pytest.approx(right / total)
    assert found.miou == pytest.approx(np.mean([h / u for h, u in zip(hits, union, strict=False) if u]))
    for k, name in enumerate(CLASSES.classes):
        assert found.iou[name] == (pytest.approx(hits[k] / union[k]) if union[k] else None)
    entries = json.loads((tmp_path / "predictions" / "examples.json").read_text())
    assert [entry["key"] for entry in entries] == ["s000", "s001", "s002"]
    saved = np.asarray(Image.open(tmp_path / "predictions" / entries[0]["label"]))
    assert np.array_equal(saved, read_sample(DomainIndex.open(domains / "night"), 0).label)


def test_table_and_json_carry_the_same_figures(domains: Path, tmp_path: Path) -> None:
    make_run(domains, tmp_path / "run")
    results = evaluate(tmp_path / "run", {"dark": domains / "night", "other": domains / "a"})
    head, first, second, mean, source = results.table().splitlines()
    protocol = "shorter side 16, whole, labels at their own size"
    assert source == f"{results.run}: {results.checkpoint}, step {results.step}; {protocol}"
    assert head.split()[:3] == ["target", "images", "mIoU"]
    assert first.split()[0] == "dark"
    assert second.split()[:2] == ["other", "5"]
    tree = json.loads(results.to_json())
    assert f"{100 * tree['targets']['dark']['miou']:.1f}" == first.split()[2]
    both = [tree["targets"][name]["miou"] for name in ("dark", "other")]
    assert mean.split() == ["mean", f"{50 * sum(both):.1f}"]
    assert tree["mean_miou"] == pytest.approx(sum(both) / 2)
    assert tree["protocol"] == protocol
    assert len({line.index(line.split()[1]) + len(line.split()[1]) for line in (first, second)}) == 1


def test_the_run_needs_neither_text_file_nor_pretrained_weights(domains: Path, tmp_path: Path) -> None:
    for classifier in ("otp", "otp_init", "linear"):
        config = make_run(domains, tmp_path / classifier, classifier=classifier)
        assert config.text.file is not None
        assert not config.text.file.exists()
        segmentor, *_ = load_segmentor(tmp_path / classifier)
        assert not segmentor.training
        assert not any(parameter.requires_grad for parameter in segmentor.parameters())


def test_another_class_set_is_refused(domains: Path, tmp_path: Path) -> None:
    make_run(domains, tmp_path / "run")
    make_domain(tmp_path / "camvid", 1, classes="camvid11")
    with pytest.raises(UserError, match=r"camvid11.*roads6.*--classes roads6"):
        evaluate(tmp_path / "run", {"camvid": tmp_path / "camvid"})


def test_no_targets_and_missing_targets_are_refused(domains: Path, tmp_path: Path) -> None:
    make_run(domains, tmp_path / "run")
    with pytest.raises(UserError, match="--target NAME=FOLDER"):
        evaluate(tmp_path / "run", {})
    with pytest.raises(UserError, match="nowhere"):
        evaluate(tmp_path / "run", {"x": tmp_path / "nowhere"})


def test_newest_best_and_named_checkpoints(domains: Path, tmp_path: Path) -> None:
    make_run(domains, tmp_path / "run", steps=(20, 40))
    step = [load_segmentor(path, which=which)[3].name[-2:] for path, which in _ways(tmp_path / "run")]
    assert step == ["40", "20", "20"]


def _ways(run: Path) -> list[tuple[Path, str]]:
    return [(run, "latest"), (run, "best"), (list_checkpoints(run)[0], "latest")]


def test_damaged_and_foreign_checkpoints_are_named(domains: Path, tmp_path: Path) -> None:
    make_run(domains, tmp_path / "run")
    folder = list_checkpoints(tmp_path / "run")[0]
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors has \d+ bytes"):
        load_segmentor(folder)
    with pytest.raises(UserError, match="no whole checkpoint"):
        load_segmentor(tmp_path / "run")
    with pytest.raises(UserError, match="no run or checkpoint"):
        load_segmentor(tmp_path / "nowhere")


def test_weights_of_another_model_are_refused(domains: Path, tmp_path: Path) -> None:
    make_run(domains, tmp_path / "run")
    config = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(config.replace("width: 8", "width: 16"))
    with pytest.raises(UserError, match=r"does not fit the model of the run's config\.yaml") as caught:
        load_segmentor(tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("total", "expected"), [(0, set()), (1, {0}), (3, {0, 1, 2}), (100, {12, 37, 62, 87})]
)
def test_examples_are_spread_evenly(total: int, expected: set[int]) -> None:
    assert spread(total) == expected


def test_a_runs_file_of_results_loses_no_table(tmp_path: Path) -> None:
    file = tmp_path / "results.json"

    def keep(checkpoint: str, step: int, **miou: float) -> dict:
        targets = {name: TargetResult(name, 1, value, value, {}) for name, value in miou.items()}
        keep_results(file, Results("r", checkpoint, step, (), targets))
        return json.loads(file.read_text())

    keep("step-00000004", 4, dusk=0.1, fog=0.2)
    found = keep("step-00000004", 4, dusk=0.3, rain=0.4)
    assert {name: item["miou"] for name, item in found["targets"].items()} == {
        "dusk": 0.3,
        "fog": 0.2,
        "rain": 0.4,
    }
    assert "earlier" not in found
    found = keep("step-00000008", 8, dusk=0.5)
    assert {name: item["miou"] for name, item in found["targets"].items()} == {"dusk": 0.5}
    assert [table["step"] for table in found["earlier"]] == [4]
    assert set(found["earlier"][0]["targets"]) == {"dusk", "fog", "rain"}
    found = keep("step-00000012", 12, dusk=0.6)
    assert [table["step"] for table in found["earlier"]] == [8, 4]
    assert results_table(found)["checkpoint"] == "step-00000012", "the report reads it"
    found = keep("step-00000008", 8, dusk=0.7, fog=0.8)
    assert found["checkpoint"] == "step-00000012", "the newest keeps the first place"
    assert [table["step"] for table in found["earlier"]] == [8, 4]
    assert {name: item["miou"] for name, item in found["earlier"][0]["targets"].items()} == {
        "dusk": 0.7,
        "fog": 0.8,
    }
    file.write_text("[")
    assert keep("step-00000012", 12, dusk=0.7)["targets"]["dusk"]["miou"] == 0.7
    assert (tmp_path / "results.json.damaged").read_text() == "["


def test_the_best_checkpoint_is_named_and_keeps_its_own_table(
    domains: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(domains, tmp_path / "run", steps=(20, 40))
    with caplog.at_level(logging.INFO):
        best = score(tmp_path / "run", {"dark": domains / "night"}, which="best")
    assert caplog.messages[-1].startswith("scoring step-00000020 of tiny, step 20: shorter side 16,")
    assert best.table().splitlines()[-1].startswith("tiny: step-00000020, step 20; shorter side 16,")
    assert not (tmp_path / "run" / "predictions").exists(), "pictures are of the last one"
    score(tmp_path / "run", {"other": domains / "a"})
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (found["step"], list(found["targets"])) == (40, ["other"])
    assert [(table["step"], list(table["targets"])) for table in found["earlier"]] == [(20, ["dark"])]


def test_two_evaluations_at_once_lose_nothing(tmp_path: Path) -> None:
    def keep(number: int) -> None:
        table = {f"t{number}": TargetResult("d", 1, 0.5, 0.5, {})}
        keep_results(tmp_path / "results.json", Results("r", "step-00000004", 4, (), table))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(keep, range(40)))
    assert len(json.loads((tmp_path / "results.json").read_text())["targets"]) == 40
