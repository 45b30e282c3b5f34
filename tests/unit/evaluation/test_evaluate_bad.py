"""Evaluation on domains with bad samples: they are left out, counted, named, and bounded."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from ppar_dist.config.load import dump_config
from ppar_dist.data.reading import eval_samples
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.errors import UserError
from ppar_dist.evaluation.confusion import ConfusionMatrix
from ppar_dist.evaluation.counting import LeftOut, confusion, held_out
from ppar_dist.evaluation.evaluate import evaluate
from ppar_dist.evaluation.labelling import predict_labels
from ppar_dist.evaluation.load import load_segmentor
from tests.unit.street_shards import overwrite
from tests.unit.tiny_run import make_config, make_domain, make_run


def spoiled_domain(folder: Path, samples: int, bad: tuple[int, ...]) -> DomainIndex:
    index = make_domain(folder, samples, seed=3)
    for sample in bad:
        overwrite(index, sample, "image", b"spoiled")
    return index


def set_ratio(run: Path, root: Path, ratio: float) -> None:
    """Have the run's own configuration allow so many bad samples."""
    config = make_config(root, run)
    data = config.data.model_copy(update={"max_bad_ratio": ratio})
    (run / "config.yaml").write_text(dump_config(config.model_copy(update={"data": data})))


def test_the_figures_are_those_of_the_good_samples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_run(tmp_path, tmp_path / "run")
    night = spoiled_domain(tmp_path / "night", 6, (2,))
    with caplog.at_level(logging.WARNING):
        results = evaluate(tmp_path / "run", {"dark": night.path, "clean": tmp_path / "a"})
    segmentor, *_ = load_segmentor(tmp_path / "run")
    matrix = ConfusionMatrix(6)
    for sample in eval_samples(night, 0, 6, 16, lambda *_: None):
        matrix.update(predict_labels(segmentor, sample.image, tuple(sample.label.shape)), sample.label)
    dark = results.targets["dark"]
    assert (dark.images, dark.left_out, results.targets["clean"].left_out) == (5, 1, 0)
    assert dark.miou == pytest.approx(float(matrix.miou()))
    said = "left out of the evaluation of dark (checksum): night/shard-000000.tar sample s002: the image is"
    assert said in caplog.text
    head, first, second, *_ = results.table().splitlines()
    assert head.split()[:4] == ["target", "images", "left", "out"]
    assert (first.split()[:3], second.split()[:3]) == (["dark", "5", "1"], ["clean", "5", "0"])
    assert json.loads(results.to_json())["targets"]["dark"]["left_out"] == 1


def test_a_table_without_bad_samples_does_not_speak_of_them(tmp_path: Path) -> None:
    make_run(tmp_path, tmp_path / "run")
    assert "left out" not in evaluate(tmp_path / "run", {"clean": tmp_path / "a"}).table()


@pytest.mark.parametrize(("bad", "ratio"), [((0, 1), 0.01), ((3,), 0.0)])
def test_more_than_the_ratio_is_refused(tmp_path: Path, bad: tuple[int, ...], ratio: float) -> None:
    """As in training a domain counts as at least 100 samples: one bad one is a ratio of 0.01."""
    make_run(tmp_path, tmp_path / "run")
    set_ratio(tmp_path / "run", tmp_path, ratio)
    night = spoiled_domain(tmp_path / "night", 6, bad)
    with pytest.raises(UserError, match=rf"domain dark: {len(bad)} of 6 samples are bad.*max_bad_ratio"):
        evaluate(tmp_path / "run", {"dark": night.path})


def test_a_target_of_bad_samples_alone_has_no_figures(tmp_path: Path) -> None:
    make_run(tmp_path, tmp_path / "run")
    set_ratio(tmp_path / "run", tmp_path, 1.0)
    night = spoiled_domain(tmp_path / "night", 3, (0, 1, 2))
    dark = evaluate(tmp_path / "run", {"dark": night.path}).targets["dark"]
    assert (dark.images, dark.left_out, dark.miou, dark.pixel_accuracy) == (0, 3, None, None)


def test_a_missing_shard_counts_against_the_ratio(tmp_path: Path) -> None:
    make_run(tmp_path, tmp_path / "run")
    night = make_domain(tmp_path / "night", 6)
    (night.path / night.shards[0]).unlink()
    with pytest.raises(UserError, match=r"6 of 6 samples lost, more than data\.max_bad_ratio=0\.01"):
        evaluate(tmp_path / "run", {"dark": night.path})


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_held_out_shares_leave_out_what_the_whole_does(tmp_path: Path, world_size: int) -> None:
    indexes = [spoiled_domain(tmp_path / "a", 9, (0, 4, 8)), spoiled_domain(tmp_path / "b", 9, ())]
    config = make_config(tmp_path, tmp_path / "run")
    config = config.model_copy(update={"data": config.data.model_copy(update={"holdout": 0.6})})
    make_run(tmp_path, tmp_path / "run")
    segmentor, *_ = load_segmentor(tmp_path / "run")
    parts = [held_out(segmentor, config, indexes, rank, world_size) for rank in range(world_size)]
    whole = held_out(segmentor, config, indexes)
    assert whole.left_out.tolist() == [2, 0]  # sample 0 is trained on
    assert torch.stack([part.left_out for part in parts]).sum(0).tolist() == [2, 0]
    assert torch.equal(torch.stack([part.counts for part in parts]).sum(0), whole.counts)


def test_the_log_names_so_many_and_counts_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = spoiled_domain(tmp_path / "night", 30, tuple(range(29)))
    left_out = LeftOut("night")
    with caplog.at_level(logging.WARNING):
        _, count = confusion(torch.nn.Identity(), eval_samples(index, 0, 29, 16, left_out), 6)
    assert (count, left_out.count) == (0, 29)
    assert len(caplog.records) == 21
    assert "more samples, which are counted" in caplog.text
