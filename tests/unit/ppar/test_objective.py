"""The objective over several steps: against loops, over simulated ranks, and at its edges."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from ppar_dist.config.method_section import PparConfig
from ppar_dist.errors import UserError
from ppar_dist.ppar.objective import BatchLosses, Figures, Objective
from tests.unit.ppar.naive_method import Image, NaiveMethod, Sample

M, K, D, GRID, STRIDE, G = 3, 4, 6, (3, 4), 4, 8
TRUST = [[1.0, 0.3, 0.05, 0.7], [0.6, 1.0, 0.2, 0.4], [1.0, 1.0, 1.0, 0.5]]  # (M, K)
LIKELIHOOD = torch.eye(K).repeat(M, 1, 1)  # (M, K, K); domain 2 is read as it is
LIKELIHOOD[0, :2] = torch.tensor([[0.2, 1.0, 0.0, 0.1], [1.0, 0.4, 0.0, 0.0]])
LIKELIHOOD[1, 2] = torch.tensor([0.05, 0.9, 1.0, 0.3])
TRUSTED = {"reweighting": {"trust": {"enabled": True}}}
PROGRESS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)  # every stage, at least twice


def config(**changes: dict) -> PparConfig:
    base = {
        "alignment": {"text_weight": 0.3, "visual_weight": 0.2, "pixel_weight": 0.4, "difficulty_bins": 16},
        "vtp": {"count_0": 30.0},
        "reweighting": {"beta": 0.8, "momentum": 0.8, "trust": {"enabled": False}},
    }
    for name, change in changes.items():
        base[name] = base.get(name, {}) | change
    return PparConfig.model_validate(base)


def build(**changes: dict) -> Objective:
    """An objective, which reads labels as TRUST and LIKELIHOOD say where its configuration has trust."""
    objective = Objective(config(**changes), text(), M, K, G)
    assert objective.state is not None
    if objective.state.trust is not None:
        objective.state.believe(torch.tensor(TRUST), LIKELIHOOD)
    return objective


def text() -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.nn.functional.normalize(torch.randn(K, D, generator=generator), dim=1)


def global_batch(step: int, one_domain: bool = False) -> list[torch.Tensor]:
    """Features, labels, domains, losses of G images.

    Class 3 occurs in the last image of every other step alone, image 2 is ignored throughout, and
    image 5 has one class.
    """
    generator = torch.Generator().manual_seed(step)
    cells = torch.randint(0, 3, (G, *GRID), generator=generator)
    dense = torch.randn(G, D, *GRID, generator=generator) + 1.5 * text()[cells].movedim(-1, 1)
    if step % 2:
        cells[-1, 0] = 3
    cells[2], cells[5] = 255, 1
    labels = cells.repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)
    noisy = torch.rand(labels.shape, generator=generator) < 0.2  # cells of mixed labels
    labels = torch.where(noisy, 255, labels).to(torch.uint8)
    domains = torch.zeros(G, dtype=torch.int64) if one_domain else torch.arange(G) % (M - 1)
    losses = torch.rand(G, generator=generator) + 0.5
    losses[2] = 0
    return [dense, labels, domains, losses]


def run_step(
    ranks: Sequence[Objective], step: int, progress: float, micro: int = G, one_domain: bool = False
) -> tuple[list[Figures], BatchLosses, torch.Tensor | None]:
    """One step over simulated ranks; returns figures per rank, terms and gradient of the whole batch."""
    batch = global_batch(step, one_domain)
    batch[0].requires_grad_()
    for rank in ranks:
        settings = rank.begin_step(progress)
    parts = []
    for number, rank in enumerate(ranks):
        first, last = number * G // len(ranks), (number + 1) * G // len(ranks)
        for start in range(first, last, micro):
            cut = slice(start, min(start + micro, last))
            likelihood = rank.label_likelihood(batch[2][cut])
            more = {"batch_slots": torch.arange(G)[cut], "label_likelihood": likelihood}
            parts.append(rank.losses(settings, *(x[cut] for x in batch), **more))
    whole = BatchLosses(
        torch.cat([p.total for p in parts]),
        torch.cat([p.weights for p in parts]),
        {name: torch.cat([p.named[name] for p in parts]) for name in parts[0].named},
        torch.cat([p.reliability for p in parts]),
    )
    gradient = None  # the warm-up stage records no graph: here the segmentation losses are constants
    if whole.total.requires_grad:
        (gradient,) = torch.autograd.grad(whole.total.sum() / G, batch[0])
    reduced = torch.stack([rank.buffer.flat for rank in ranks]).sum(0)
    for rank in ranks:
        rank.buffer.flat.copy_(reduced)
    return [rank.end_step(settings) for rank in ranks], whole, gradient


def naive_step(naive: NaiveMethod, step: int, progress: float, one_domain: bool) -> list[Sample]:
    dense, labels, domains, losses = global_batch(step, one_domain)
    arrays = zip(dense.double().numpy(), labels.numpy(), domains.tolist(), losses.tolist(), strict=True)
    return naive.step([Image(*values) for values in arrays], progress)


@pytest.mark.parametrize("one_domain", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vtp": {"enabled": False}},
        {"reweighting": {"enabled": False}},
        {"reweighting": {"start_stage": 3}},
        {"alignment": {"enabled": False}},
        TRUSTED,
        {"reweighting": {"enabled": False, "trust": {"enabled": True}}},  # off with the rest of reweighting
    ],
)
def test_every_step_is_the_loop(changes: dict, one_domain: bool) -> None:
    objective = build(**changes)
    naive = NaiveMethod(config(**changes), text().double().numpy(), STRIDE)
    if changes == TRUSTED:
        naive.trust = {(m, k): TRUST[m][k] for m in range(M) for k in range(K)}
        naive.likelihood = LIKELIHOOD.double().numpy()
    for step, progress in enumerate(PROGRESS):
        (figures,), terms, _ = run_step([objective], step, progress, one_domain=one_domain)
        samples = naive_step(naive, step, progress, one_domain)
        assert terms.total.tolist() == pytest.approx([s.total for s in samples], rel=2e-4, abs=1e-5)
        assert terms.weights.tolist() == pytest.approx([s.weight for s in samples], rel=2e-4)
        for i, sample in enumerate(samples):
            assert {name: float(terms.named[name][i]) for name in sample.losses} == pytest.approx(
                sample.losses, rel=2e-4, abs=1e-5
            )
            expected = math.nan if sample.reliability is None else sample.reliability
            assert float(terms.reliability[i]) == pytest.approx(expected, rel=2e-4, abs=1e-5, nan_ok=True)
        assert set(terms.named) == {"segmentation", *samples[0].losses}
        check_figures(figures, samples, naive, step, one_domain)
        assert objective.state is not None
        np.testing.assert_allclose(objective.state.prototypes.numpy(), naive.prototypes(), atol=2e-5)


def check_figures(
    figures: Figures, samples: list[Sample], naive: NaiveMethod, step: int, one_domain: bool
) -> None:
    _, _, domains, losses = global_batch(step, one_domain)
    assert figures.loss["total"] == pytest.approx(sum(s.total for s in samples) / G, rel=2e-4)
    assert figures.loss["segmentation"] == pytest.approx(float(losses.mean()))
    w = [s.weight for s in samples]
    assert figures.ess_ratio == pytest.approx(sum(w) ** 2 / sum(x * x for x in w) / G, rel=1e-3)
    assert figures.weight_std == pytest.approx(float(np.std(w)), abs=1e-3)
    assert figures.sample_weights == pytest.approx(w, rel=2e-4)
    assert sum(map(sum, figures.weight_histogram)) == G
    assert figures.samples == torch.bincount(domains, minlength=M).tolist()
    for m in range(M):
        mine = [i for i in range(G) if int(domains[i]) == m]
        if not mine:
            assert math.isnan(figures.risk[m])
            assert math.isnan(figures.weight_mean[m])
            continue
        risk = sum(w[i] * float(losses[i]) for i in mine) / sum(w[i] for i in mine)
        assert figures.risk[m] == pytest.approx(risk, rel=2e-4)
        assert figures.weight_mean[m] == pytest.approx(np.mean([w[i] for i in mine]), rel=2e-4)
        known = [s.reliability for i, s in enumerate(samples) if i in mine and s.reliability is not None]
        assert figures.reliability[m] == pytest.approx(float(np.mean(known)), rel=2e-4)
    detail = figures.detail
    assert detail is not None
    assert detail.cells_total == [[naive.cells[m, k] for k in range(K)] for m in range(M)]
    v = naive.prototypes()
    assert detail.prototype_text_similarity == pytest.approx((v * naive.text).sum(1).tolist(), abs=2e-5)
    gaps = []
    for k in range(K):
        seen = [naive.sums[key] for key in naive.sums if key[1] == k]
        centroids = [x / np.linalg.norm(x) for x in seen]
        if len(centroids) > 1:
            gaps.append(max(float(np.linalg.norm(a - b)) for a in centroids for b in centroids))
    expected = float(np.mean(gaps)) if gaps else math.nan
    assert detail.domain_discrepancy == pytest.approx(expected, rel=1e-4, nan_ok=True)


def test_admission_grows_and_is_reported() -> None:
    objective = Objective(config(), text(), M, K, G)
    found = [run_step([objective], step, progress)[0][0] for step, progress in enumerate(PROGRESS)]
    assert [f.stage for f in found] == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert all(math.isnan(f.admitted_ratio) and math.isnan(f.threshold) for f in found[:6])
    assert [f.quantile for f in found[6:]] == pytest.approx([0.3, 0.3 + 0.7 * 0.4, 0.3 + 0.7 * 0.8])
    ratios = [f.admitted_ratio for f in found[6:]]
    assert 0 < ratios[0] < ratios[1] < ratios[2] < 1


@pytest.mark.parametrize("changes", [{}, TRUSTED])
@pytest.mark.parametrize(("world_size", "micro"), [(2, G), (3, G), (1, 3), (2, 1)])
def test_ranks_and_micro_batches_compute_what_one_rank_does(
    world_size: int, micro: int, changes: dict
) -> None:
    alone, ranks = build(**changes), [build(**changes) for _ in range(world_size)]
    for step, progress in enumerate(PROGRESS):
        (expected,), one, one_gradient = run_step([alone], step, progress)
        figures, many, gradient = run_step(ranks, step, progress, micro)
        torch.testing.assert_close(many.total, one.total, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(many.weights, one.weights, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(many.reliability, one.reliability, rtol=1e-5, atol=1e-6, equal_nan=True)
        if one_gradient is not None:
            torch.testing.assert_close(gradient, one_gradient, rtol=1e-4, atol=1e-6)
        states = [rank.state_dict() for rank in ranks]
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(states[0][name], value, rtol=1e-5, atol=1e-5)
            assert all(torch.equal(state[name], states[0][name]) for state in states)  # bit for bit
        for found in figures:
            assert found.flat() == pytest.approx(expected.flat(), rel=1e-4, abs=1e-5)
            assert found.detail is not None
            assert figures[0].detail is not None
            assert found.detail.prototype_checksum == figures[0].detail.prototype_checksum
            assert found.sample_weights == pytest.approx(many.weights.tolist())
    assert alone.state_dict()["bank.cells_total"][:, 3].count_nonzero() == 1  # seen by the last rank alone


@pytest.mark.parametrize("changes", [{}, TRUSTED])
def test_restoring_a_state_continues_bit_for_bit(changes: dict) -> None:
    objective = build(**changes)
    for step in range(6):
        run_step([objective], step, PROGRESS[step])
    copy = Objective(config(**changes), text(), M, K, G)
    copy.load_state_dict(objective.state_dict())
    for step in range(6, 9):
        (a,), one, _ = run_step([objective], step, PROGRESS[step])
        (b,), two, _ = run_step([copy], step, PROGRESS[step])
        assert torch.equal(one.total, two.total)
        assert torch.equal(one.weights, two.weights)
        assert a.flat() == b.flat()
    assert all(torch.equal(v, copy.state_dict()[name]) for name, v in objective.state_dict().items())


def test_a_state_of_another_configuration_is_refused() -> None:
    state = Objective(config(), text(), M, K, G).state_dict()
    with pytest.raises(UserError, match=r"bank\.sums is \(3, 4, 6\), not \(2, 4, 6\).*resume with"):
        Objective(config(), text(), M - 1, K).load_state_dict(state)
    del state["bank.counts"]
    with pytest.raises(UserError, match=r"bank\.counts"):
        Objective(config(), text(), M, K, G).load_state_dict(state)
    with pytest.raises(UserError, match=r"reweighting\.likelihood; reweighting\.trust"):
        build(**TRUSTED).load_state_dict(build().state_dict())
    weighed = build(**TRUSTED).state_dict()  # as an earlier version wrote it
    del weighed["reweighting.likelihood"]
    everything = {**weighed, "reweighting.trust": torch.ones(M, K)}
    trusting = build(**TRUSTED)
    trusting.load_state_dict(everything)
    assert trusting.label_likelihood(torch.tensor([0, 1])) is None
    with pytest.raises(UserError, match=r"a version that weighed distrusted labels.*train it again"):
        build(**TRUSTED).load_state_dict(weighed)
    with pytest.raises(UserError, match=r"ppar\.enabled is false"):
        Objective(PparConfig(enabled=False), None, M, K).load_state_dict(state)


def test_switched_off_it_is_plain_fine_tuning() -> None:
    objective = Objective(PparConfig(enabled=False), None, M, K, global_batch=G)
    (figures,), terms, gradient = run_step([objective], 1, 0.9)
    losses = global_batch(1)[3]
    assert torch.equal(terms.total, losses)
    assert gradient is None
    assert set(terms.named) == {"segmentation"}
    assert terms.reliability.isnan().all()
    assert figures.loss == pytest.approx(
        {"total": float(losses.mean()), "segmentation": float(losses.mean())}
    )
    assert figures.ess_ratio == pytest.approx(1)
    assert figures.weight_std == 0
    assert figures.detail is None
    assert objective.state_dict() == {}


def test_nothing_valid_adds_nothing() -> None:
    objective = Objective(config(), text(), M, K, G)
    for step in range(6):
        run_step([objective], step, PROGRESS[step])
    before = objective.state_dict()
    settings = objective.begin_step(0.9)
    dense = torch.randn(2, D, *GRID, requires_grad=True)
    labels = torch.full((2, 12, 16), 255, dtype=torch.uint8)
    terms = objective.losses(settings, dense, labels, torch.tensor([0, 1]), torch.zeros(2))
    terms.total.sum().backward()
    figures = objective.end_step(settings)
    assert terms.total.tolist() == [0, 0]
    assert terms.weights.tolist() == [1, 1]
    assert torch.equal(dense.grad, torch.zeros_like(dense))
    assert all(torch.equal(v, before[name]) for name, v in objective.state_dict().items())
    assert figures.finite
    assert "loss/pixel" not in figures.flat()
    assert "reliability/0" not in figures.flat()


@pytest.mark.parametrize("where", ["loss", "features"])
def test_a_broken_batch_leaves_the_state_alone(where: str) -> None:
    objective = Objective(config(), text(), M, K, G)
    for step in range(4):
        run_step([objective], step, PROGRESS[step])
    before = objective.state_dict()
    settings = objective.begin_step(0.6)
    dense, labels, domains, losses = global_batch(4)
    (losses if where == "loss" else dense)[0] = math.nan
    objective.losses(settings, dense, labels, domains, losses)
    figures = objective.end_step(settings)
    assert not figures.finite
    assert math.isnan(figures.flat()["loss/total"])
    assert all(torch.equal(v, before[name]) for name, v in objective.state_dict().items())


def test_a_teacher_feeds_the_bank_and_the_student_everything_else() -> None:
    chosen = config(bank={"teacher": "frozen", "teacher_every": 2})
    objective, student = (Objective(c, text(), M, K, G) for c in (chosen, config()))
    dense, labels, domains, losses = global_batch(1)
    teacher = torch.nn.functional.interpolate(-dense, scale_factor=2)  # another grid
    for one, more in ((objective, {"teacher_dense": teacher}), (student, {})):
        settings = one.begin_step(0.2)
        one.losses(settings, dense, labels, domains, losses, **more)
    fed, own = objective.buffer.view("sums"), student.buffer.view("sums")
    assert not torch.allclose(fed, own)
    assert torch.nn.functional.cosine_similarity(fed[0, 1], own[0, 1], 0) < 0
    assert objective.buffer.view("counts").sum() > 2 * student.buffer.view("counts").sum()
    torch.testing.assert_close(objective.buffer.view("domains"), student.buffer.view("domains"))
    objective.end_step(settings)
    before = objective.state_dict()
    settings = objective.begin_step(0.2)
    objective.losses(settings, dense, labels, domains, losses)  # a step between two passes of the teacher
    assert objective.end_step(settings).finite
    for name in ("bank.sums", "bank.counts", "bank.cells_total"):
        assert torch.equal(objective.state_dict()[name], before[name])


def test_reliability_follows_the_labels() -> None:
    objective = Objective(config(), text(), M, K, G)
    for step in range(8):
        run_step([objective], step, 0.2)
    dense, labels, domains, losses = global_batch(8)
    wrong = torch.where(labels == 255, 255, (labels.int() + 1) % 3).to(torch.uint8)
    settings = objective.begin_step(0.2)
    clean = objective.losses(settings, dense, labels, domains, losses)
    spoiled = objective.losses(settings, dense, wrong, domains, losses)
    valid = ~clean.reliability.isnan()
    assert (clean.reliability > spoiled.reliability)[valid].all()
    assert (clean.weights > spoiled.weights)[valid].all()


def test_labels_have_the_likelihood_of_their_domain_where_any_is_distrusted() -> None:
    domains = torch.tensor([2, 0])
    found = build(**TRUSTED).label_likelihood(domains)
    assert found is not None
    assert torch.equal(found, LIKELIHOOD[domains])
    assert build().label_likelihood(domains) is None
    trusting = Objective(config(**TRUSTED), text(), M, K, G)
    assert trusting.label_likelihood(domains) is None
    trusting.load_state_dict(build(**TRUSTED).state_dict())
    assert trusting.label_likelihood(domains) is not None


def test_trust_is_among_the_figures() -> None:
    objective = build(**TRUSTED)
    (figures,), _, _ = run_step([objective], 0, 0.0)
    named = figures.named(("a", "b", "c"), ("w", "x", "y", "z"))
    found = [[named[f"trust/{domain}/{label}"] for label in "wxyz"] for domain in "abc"]
    np.testing.assert_allclose(found, TRUST)
    (figures,), _, _ = run_step([build()], 0, 0.0)
    assert not any(name.startswith("trust/") for name in figures.named(("a", "b", "c"), tuple("wxyz")))


def test_shared_counts_and_names_come_with_the_figures() -> None:
    shapes = {"stop": (1,), "bad": (M, 2)}
    ranks = [Objective(config(), text(), M, K, shared_counts=shapes) for _ in range(2)]
    for rank in ranks:
        settings = rank.begin_step(0.0)
        rank.losses(settings, *global_batch(0))
    ranks[1].buffer.add("stop", torch.ones(1))
    ranks[0].buffer.view("bad")[2, 1] += 3
    ranks[0].buffer.flat.add_(ranks[1].buffer.flat)
    figures = ranks[0].end_step(settings)
    counts = {name: count.tolist() for name, count in figures.shared_counts.items()}
    assert counts == {"stop": [1], "bad": [[0, 0], [0, 0], [0, 3]]}
    named = figures.named(("a", "b", "c"), ("w", "x", "y", "z"))
    assert named["risk/a"] == figures.risk[0]
    assert named["cells_total/b/x"] == figures.detail.cells_total[1][1]
    assert "risk/c" not in named
    assert not any(math.isnan(value) for value in named.values())
    assert 0.9 <= figures.weight_quantile(0, 0.5) <= 1.0  # all weights are 1
    settings = ranks[0].begin_step(0.0)
    ranks[0].losses(settings, *global_batch(0))
    assert ranks[0].end_step(settings, detail=False).detail is None


def test_widths_and_classes_that_differ_are_refused() -> None:
    with pytest.raises(UserError, match=r"a text prototype for each of 5 classes, got 4; check text\.file"):
        Objective(config(), text(), M, 5)
    with pytest.raises(UserError, match="of 4 classes, got none"):
        Objective(config(), None, M, K)
    objective = Objective(config(), text(), M, K, G)
    settings = objective.begin_step(0.0)
    dense, *others = global_batch(0)
    with pytest.raises(UserError, match="features are 5 wide and text prototypes 6; choose embeddings"):
        objective.losses(settings, dense[:, :5], *others)
