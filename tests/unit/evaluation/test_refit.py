"""What the last stage fits, against the condition of its optimum and what it is for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ppar_dist.class_sets import class_set
from ppar_dist.config.load import parse_config
from ppar_dist.config.schema import Config
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.errors import UserError
from ppar_dist.evaluation.load import _load_weights
from ppar_dist.evaluation.refit import _DECAY, _logistic, _never_flat, refit
from ppar_dist.evaluation.survey import source_cells
from ppar_dist.models.segmentor import Segmentor, build_segmentor
from ppar_dist.ppar.trust import Cells
from tests.ranks import tiny_config, write_blocks_domain

K, W = 3, 5
NEW = torch.zeros(K, W), torch.zeros(K)  # a classifier that training left alone
PROTOTYPES = {f"image_prototypes.{name}" for name in ("means", "precision", "shares")}


def cells(number: int, seed: int, width: int = W) -> Cells:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K, (number,), generator=generator)
    centres = torch.randn(K, width, generator=torch.Generator().manual_seed(7))
    noise = torch.randn(number, width, generator=generator)
    return Cells(3 + 2 * (centres[labels] + noise), labels)


def test_the_gradient_is_zero_at_the_fitted_classifier() -> None:
    domains, votes = (
        [cells(200, 1, W + 2), cells(50, 2, W + 2)],
        torch.tensor([[1.0, 1.0, 0.5], [0.2, 1.0, 1.0]]),
    )
    fitted, biases = _logistic(domains, votes, *NEW)
    x = torch.cat([each.features[:, :W] for each in domains]).double()
    y = torch.cat([each.labels for each in domains])
    w = torch.cat([vote[each.labels] / len(each.labels) for vote, each in zip(votes, domains, strict=True)])
    w = (w / w.sum()).double()
    scale = (w @ (x - w @ x).square()).sqrt()
    weights, bias = fitted.double().requires_grad_(), biases.double().requires_grad_()
    loss = w @ F.cross_entropy(x @ weights.t() + bias, y, reduction="none")
    loss = loss + _DECAY * (weights * scale).square().sum()
    for gradient in torch.autograd.grad(loss, (weights, bias)):
        assert gradient.abs().max() < 1e-4


def test_a_domain_without_trust_does_not_count() -> None:
    good, bad = cells(300, 1), cells(300, 2)
    wrong = Cells(bad.features, (bad.labels + 1) % K)
    alone = _logistic([good], torch.ones(1, K), *NEW)
    both = _logistic([good, wrong], torch.tensor([[1.0] * K, [0.0] * K]), *NEW)
    for one, other in zip(alone, both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_class_without_a_cell_stays_as_probable_as_training_left_it() -> None:
    """And the others are those of a fit that does not know it."""
    domain = cells(400, 1)
    shown = domain.labels != 1
    domain = Cells(domain.features[shown], domain.labels[shown])
    noise = torch.randn(K, W, generator=torch.Generator().manual_seed(3))
    trained = 0.3 * noise, torch.tensor([0.1, -0.5, 0.2])
    weights, biases = _logistic([domain], torch.ones(1, K), *trained)
    others = Cells(domain.features, domain.labels // 2)
    alone = _logistic([others], torch.ones(1, 2), torch.zeros(2, W), torch.zeros(2))
    torch.testing.assert_close((weights[[0, 2]], biases[[0, 2]]), alone)
    before, after = (domain.features @ w.t() + b for w, b in (trained, (weights, biases)))
    mean = [logits.softmax(1)[:, 1].mean() for logits in (before, after)]
    torch.testing.assert_close(*mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights[1], trained[0][1])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, list[DomainIndex]]:
    root = tmp_path_factory.mktemp("refit")
    for seed, name in enumerate(("left", "right")):
        write_blocks_domain(root / name, samples=8, seed=seed, rare_in=None)
    tree = tiny_config(root, root / "run")
    tree["model"]["classifier"] = "linear"
    tree["refit"] = {"linear": True, "prototypes": True, "images": 4}
    return parse_config(tree), [DomainIndex.open(root / name) for name in ("left", "right")]


def right(model: Segmentor, config: Config, index: DomainIndex) -> float:
    """Share of pixels of a domain that a segmentor gets right."""
    from ppar_dist.data.reading import eval_samples
    from ppar_dist.evaluation.counting import confusion

    matrix, _ = confusion(model, eval_samples(index, 0, len(index), config.data.size), 6)
    counts: Tensor = matrix.counts.double()
    return float(counts.diagonal().sum() / counts.sum())


def test_an_untrained_network_learns_to_tell_colours_apart(
    tiny: tuple[Config, list[DomainIndex]],
) -> None:
    config, indexes = tiny
    torch.manual_seed(0)
    model, _ = build_segmentor(config, class_set("roads6"))
    before = right(model.eval(), config, indexes[0])
    fitted, unseen = refit(model, config, indexes, None)
    assert set(fitted) == {"linear.weight", "linear.bias", *PROTOTYPES}
    assert all(value.isfinite().all() for value in fitted.values())
    assert 5 in unseen
    assert not model.training
    model.load_refit(fitted)
    after = right(model, config, indexes[0])
    assert after > 0.6 > 0.4 > before, (before, after)


def test_the_same_cells_give_the_same_classifiers(tiny: tuple[Config, list[DomainIndex]]) -> None:
    config, indexes = tiny
    torch.manual_seed(0)
    model, _ = build_segmentor(config, class_set("roads6"))
    trust = torch.full((2, 6), 0.5)
    first, second = (refit(model, config, indexes, each).values for each in (trust, trust))
    for name, value in first.items():
        assert torch.equal(value, second[name])


def test_more_images_than_a_source_has_are_all_of_them(
    tiny: tuple[Config, list[DomainIndex]],
) -> None:
    config, indexes = tiny
    torch.manual_seed(0)
    model, _ = build_segmentor(config, class_set("roads6"))
    fitted = []
    for images in (8, 1_000_000):
        asked = config.refit.model_copy(update={"images": images})
        fitted.append(refit(model, config.model_copy(update={"refit": asked}), indexes, None).values)
    for name, value in fitted[0].items():
        assert torch.equal(value, fitted[1][name])


def of_one_source(root: Path, classifier: str = "otp") -> tuple[Segmentor, Config, DomainIndex]:
    """A model, untrained, and its only source."""
    write_blocks_domain(root / "left", samples=4, seed=0, rare_in=None)
    tree = tiny_config(root, root / "run")
    tree["data"]["sources"] = ["left"]
    tree["model"]["classifier"] = classifier
    tree["refit"] = {"linear": classifier == "linear", "prototypes": True, "images": 2}
    config = parse_config(tree)
    return build_segmentor(config, class_set("roads6"))[0], config, DomainIndex.open(root / "left")


def test_prototypes_of_a_run_at_a_path(tmp_path: Path) -> None:
    """A text classifier keeps its text: only prototypes are fitted."""
    model, config, index = of_one_source(tmp_path)
    fitted, _ = refit(model, config, [index], None)
    assert set(fitted) == PROTOTYPES


def test_prototypes_are_means_of_cells_and_classes_without_cells_have_no_share(
    tiny: tuple[Config, list[DomainIndex]],
) -> None:
    config, indexes = tiny
    torch.manual_seed(0)
    model, _ = build_segmentor(config, class_set("roads6"))
    found, unseen = refit(model, config, indexes, None)
    domains = source_cells(
        model.eval().pixel_features, config, indexes, 6, config.refit.images, 5000, "cpu", lambda: None, ""
    )
    for k in range(6):
        own = [each.features[each.labels == k] for each in domains]
        present = [features.mean(0) for features in own if len(features)]
        assert bool(present) == (k not in unseen)
        assert found["image_prototypes.shares"][k] == (pytest.approx(0.035) if present else 0)
        if present:  # sources count alike, whatever their number of cells
            torch.testing.assert_close(
                found["image_prototypes.means"][k], torch.stack(present).mean(0), rtol=1e-4, atol=1e-5
            )
    assert not found["image_prototypes.shares"].all()  # class 5 is nowhere


def test_a_feature_that_is_flat_in_the_sources_does_not_decide() -> None:
    covariance = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    precision = torch.linalg.inv(_never_flat(covariance))
    torch.testing.assert_close(precision.diagonal(), torch.tensor([1.0, 0.5, 1e3]).double())


def test_prototypes_of_an_earlier_form_are_refused(tiny: tuple[Config, list[DomainIndex]]) -> None:
    model, _ = build_segmentor(tiny[0], class_set("roads6"))
    weights = {name: value for name, value in model.state_dict().items() if name not in PROTOTYPES}
    weights |= {"prototype_weights": torch.zeros(6, 3), "prototype_biases": torch.zeros(6)}
    with pytest.raises(UserError, match=r"an earlier form of refit\.prototypes.*train it again"):
        _load_weights(model, weights, Path("run/checkpoints/step-00000002"))


@pytest.mark.parametrize("classifier", ["otp", "linear"])
def test_without_a_labelled_cell_a_prediction_stays_as_it_is(tmp_path: Path, classifier: str) -> None:
    model, config, index = of_one_source(tmp_path, classifier)
    model.eval()
    image = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    before = model(image).logits
    fitted, unseen = refit(model, config, [index], torch.zeros(1, 6))  # nobody is trusted
    assert not fitted
    assert unseen == tuple(range(6))
    model.load_refit(fitted)
    assert torch.equal(model(image).logits, before)


def test_images_that_cannot_be_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And a classifier that has nothing to be fitted to stays as it was trained."""
    model, config, index = of_one_source(tmp_path, "linear")
    next((tmp_path / "left").glob("*.tar")).unlink()
    with caplog.at_level(logging.WARNING):
        fitted, unseen = refit(model, config, [index], None)
    assert (fitted, unseen) == ({}, tuple(range(6)))
    assert len(caplog.messages) == 2  # refit.images
    assert all(line.startswith("left out of the refit of left (") for line in caplog.messages)


def test_features_that_never_vary_give_finite_numbers() -> None:
    precision = torch.linalg.inv(_never_flat(torch.zeros(3, 3, dtype=torch.float64))).float()
    assert precision.isfinite().all()
