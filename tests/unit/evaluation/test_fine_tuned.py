"""Checkpoints with adapters and averaged weights: commands see a plain model with the weights asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppar_dist import checkpoint
from ppar_dist.checkpoint import Snapshot
from ppar_dist.config.load import dump_config, parse_config
from ppar_dist.errors import UserError
from ppar_dist.evaluation.evaluate import evaluate
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.export import export
from ppar_dist.models.average import AVERAGE, WeightAverage
from ppar_dist.models.segmentor import Segmentor, build_segmentor
from tests.unit.tiny_run import CLASSES, make_config, make_domain, make_run

IMAGES = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Segmentor, Segmentor]:
    """A run with adapters that do something; its model as trained, and with averaged weights."""
    root = tmp_path_factory.mktemp("adapted")
    make_domain(root / "a", 5)
    tree = make_config(
        root, root / "run", "linear", train={"steps": 40, "global_batch": 4, "weight_average": 0.5}
    )
    plain = tree.model_dump(mode="json")
    plain["model"]["backbone"] |= {"trainable": "lora", "lora": {"rank": 2, "alpha": 4.0}}
    config = parse_config(plain)
    torch.manual_seed(5)
    raw, _ = build_segmentor(config, CLASSES, load_weights=False)
    average = WeightAverage(raw, 0.5)
    with torch.no_grad():
        for name, parameter in raw.named_parameters():
            if "gamma" in name:  # ConvNeXt begins with blocks that do next to nothing
                parameter.fill_(1.0)
            elif parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape)
    average.follow(raw)
    tensors = {
        checkpoint.MODEL: raw.state_dict(),
        checkpoint.METHOD: {AVERAGE + name: value for name, value in average.state_dict().items()},
    }
    texts = {checkpoint.STATE: json.dumps({"step": 40})}
    checkpoint.publish(config.run.dir, Snapshot(40, tensors, texts, {"world_size": 1}))
    (config.run.dir / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    averaged, _ = build_segmentor(config, CLASSES, load_weights=False)
    averaged.load_state_dict(raw.state_dict() | average.state_dict())
    return config.run.dir, raw.eval(), averaged.eval()


def logits(segmentor: Segmentor) -> Tensor:
    with torch.no_grad():
        found: Tensor = segmentor(IMAGES, dense=False).logits
    return found


def test_a_loaded_model_is_plain_and_predicts_what_was_trained(
    trained: tuple[Path, Segmentor, Segmentor],
) -> None:
    run, raw, averaged = trained
    for weights, expected in (("raw", raw), ("averaged", averaged)):
        segmentor = load_segmentor(run, weights=weights)[0]
        assert not any("lora" in name or "base_layer" in name for name in segmentor.state_dict())
        torch.testing.assert_close(logits(segmentor), logits(expected), rtol=1e-4, atol=1e-4)
    assert float((logits(raw) - logits(averaged)).abs().max()) > 1e-2


def test_scores_of_averaged_weights_have_a_table_of_their_own(
    trained: tuple[Path, Segmentor, Segmentor],
) -> None:
    run, *_ = trained
    results = [evaluate(run, {"a": run.parent / "a"}, weights=weights) for weights in ("raw", "averaged")]
    assert results[1].protocol == f"{results[0].protocol}, averaged weights"
    assert results[0].targets["a"].confusion != results[1].targets["a"].confusion


@pytest.mark.parametrize("weights", ["raw", "averaged"])
def test_a_model_folder_needs_no_adapters(
    trained: tuple[Path, Segmentor, Segmentor], tmp_path: Path, weights: str
) -> None:
    run, raw, averaged = trained
    export(run, tmp_path / "model", weights=weights)
    expected = raw if weights == "raw" else averaged
    torch.testing.assert_close(
        logits(load_segmentor(tmp_path / "model")[0]), logits(expected), rtol=1e-4, atol=1e-4
    )


def test_averaged_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path, tmp_path / "run", classifier="linear")
    with pytest.raises(
        UserError, match=r"holds no averaged weights: it was trained without train\.weight_average"
    ):
        load_segmentor(tmp_path / "run", weights="averaged")
