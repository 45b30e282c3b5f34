from __future__ import annotations

import math
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from ppar_dist.data.shards.sample import REASONS
from ppar_dist.errors import UserError
from ppar_dist.monitoring import endpoint
from ppar_dist.monitoring.metrics import RunMetrics
from ppar_dist.monitoring.rank import RankMetrics
from ppar_dist.monitoring.registry import Registry
from ppar_dist.ppar.diagnostics import Detail, Figures
from ppar_dist.ppar.reweighting import WEIGHT_EDGES
from ppar_dist.run.state import TrainState, bad_counts
from tests.unit.tiny_run import make_config

DOMAINS, CLASSES = ("day", "fog"), ("road", "sky")
WEIGHTS = {"day": [0.05, 0.95, 1.0, 1.1, 7.0], "fog": [0.3]}


def histogram(weights: list[float]) -> list[int]:
    """Independent of the product: count by comparing, one bin above the last edge."""
    edges = (*WEIGHT_EDGES, math.inf)
    counts = [0] * len(edges)
    for weight in weights:
        counts[min(i for i, edge in enumerate(edges) if weight <= edge)] += 1
    return counts


def figures(**changes: Any) -> Figures:
    values: dict[str, Any] = {
        "finite": True,
        "stage": 3,
        "loss": {"total": 0.9, "segmentation": 0.7, "pixel": 1.5},
        "samples": [5, 1],
        "quantile": 0.6,
        "threshold": 0.4,
        "admitted_ratio": 0.55,
        "ess_ratio": 0.8,
        "weight_mean": [2.02, 0.3],
        "weight_std": 1.0,
        "weight_sum": [sum(WEIGHTS["day"]), sum(WEIGHTS["fog"])],
        "weight_histogram": [histogram(WEIGHTS["day"]), histogram(WEIGHTS["fog"])],
        "risk": [0.7, 0.8],
        "reliability": [-1.0, math.nan],
        "sample_weights": [],
        "sample_reliability": [],
        "sample_attempts": [],
        "shared_counts": {"bad": torch.zeros(2, len(REASONS))},
        "detail": Detail(0.3, [0.9, 0.8], [0.01, 0.02], [[10.0, 0.0], [3.0, 4.0]], 7),
    }
    return Figures(**(values | changes))


def scrape(url: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        assert answer.status == 200
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


class Metrics:
    """The metrics of a run of 40 steps, and the registry they are on."""

    def __init__(self) -> None:
        self.registry = Registry()
        config = make_config(Path("shards"), Path("runs/roads"), checkpoint={"every": 7})
        self.run = RunMetrics(self.registry, config, DOMAINS, CLASSES, ranks=3)
        self.rank = RankMetrics(self.registry, rank=0, host="node-a")


def publish(metrics: Metrics, step: int, non_finite: int = 0, **changes: Any) -> None:
    state, rates = TrainState(step=step, non_finite=non_finite), {"backbone": 1e-4, "head": 1e-3}
    found = figures(**changes)
    bad = bad_counts(found.shared_counts["bad"].tolist(), DOMAINS, REASONS)
    metrics.run.publish_step(state, found, bad, rates, 2.5, 0.4)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def read(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with endpoint.start("127.0.0.1", 0, metrics.registry) as served:
        return scrape(served.url)


def test_everything_a_step_says_is_scraped(metrics: Metrics) -> None:
    publish(metrics, 1)
    metrics.rank.publish_step(data_wait=0.1)
    metrics.rank.publish_checksum(4294967295)
    metrics.run.publish_checkpoint(3.0, stall=0.25)
    metrics.run.publish_iou("night", 0.5, {"road": 0.75, "sky": None})
    found = read(metrics)
    expected = {
        ("ppar_alignment_stage", ()): 3,
        ("ppar_alignment_admitted_ratio", ()): 0.55,
        ("ppar_effective_sample_size_ratio", ()): 0.8,
        ("ppar_reliability", (("domain", "day"),)): -1.0,
        ("ppar_loss", (("term", "pixel"),)): 1.5,
        ("ppar_loss", (("term", "total"),)): 0.9,
        ("ppar_source_risk", (("domain", "fog"),)): 0.8,
        ("ppar_domain_discrepancy", ()): 0.3,
        ("ppar_prototype_text_similarity", (("class", "sky"),)): 0.8,
        ("ppar_prototype_drift", (("class", "road"),)): 0.01,
        ("ppar_prototype_cells_total", (("class", "sky"), ("domain", "fog"))): 4,
        ("ppar_learning_rate", (("group", "head"),)): 1e-3,
        ("ppar_grad_norm", ()): 2.5,
        ("ppar_steps_total", ()): 1,
        ("ppar_samples_total", (("domain", "day"),)): 5,
        ("ppar_step_duration_seconds_sum", ()): 0.4,
        ("ppar_step_duration_seconds_count", ()): 1,
        ("ppar_data_wait_seconds_total", ()): 0.1,
        ("ppar_checkpoint_duration_seconds_sum", ()): 3.0,
        ("ppar_checkpoint_stall_seconds", ()): 0.25,
        ("ppar_miou", (("target", "night"),)): 0.5,
        ("ppar_iou", (("class", "road"), ("target", "night"))): 0.75,
        ("ppar_prototype_checksum", ()): 4294967295,
        ("ppar_prototype_checksum_mismatches_total", ()): 0,
        ("ppar_rank_info", (("host", "node-a"), ("rank", "0"))): 1,
        ("ppar_progress_ratio", ()): 1 / 40,
        ("ppar_train_steps", ()): 40,
        ("ppar_checkpoint_interval_steps", ()): 7,
        ("ppar_alignment_stage_start_ratio", (("stage", "warmup"),)): 0,
        ("ppar_alignment_stage_start_ratio", (("stage", "visual_text"),)): 0.3,
        ("ppar_non_finite_streak", ()): 0,
        ("ppar_rollbacks_total", ()): 0,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["ppar_last_step_timestamp_seconds", ()] > 1.6e9
    info = [dict(labels) for name, labels in found if name == "ppar_run_info"]
    assert info[0]["run"] == "tiny"
    assert info[0]["ranks"] == "3"


def test_mfu_is_served_only_where_it_is_known(metrics: Metrics) -> None:
    metrics.run.publish_speed(32.5, None)
    found = read(metrics)
    assert found["ppar_images_per_second", ()] == 32.5
    assert not any("mfu" in name or "device_memory" in name for name, _ in found)
    for mfu in (0.375, 0.5):
        metrics.run.publish_speed(40.0, mfu)
    assert read(metrics)["ppar_mfu_ratio", ()] == 0.5


def test_goodput_is_asked_for_at_each_scrape(metrics: Metrics) -> None:
    assert read(metrics)["ppar_goodput_ratio", ()] == 0
    ratios = [0.25, 0.75]
    metrics.run.follow_goodput(lambda: ratios[-1])
    assert read(metrics)["ppar_goodput_ratio", ()] == 0.75
    ratios.append(0.5)
    assert read(metrics)["ppar_goodput_ratio", ()] == 0.5


def test_the_memory_of_a_gpu_is_asked_for_at_each_scrape(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics.rank.follow_memory(torch.device("cpu"))
    assert not any("device_memory" in name for name, _ in read(metrics))
    device, taken = torch.device("cuda", 1), {0: 5, 1: 3 << 30}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: taken[device.index])
    properties = SimpleNamespace(total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    metrics.rank.follow_memory(device)
    taken[1] = 7 << 30
    found = read(metrics)
    assert found["ppar_device_memory_peak_bytes", ()] == 7 << 30
    assert found["ppar_device_memory_total_bytes", ()] == 80 << 30


def test_sample_weights_are_a_cumulative_histogram_per_domain(metrics: Metrics) -> None:
    publish(metrics, 1)
    publish(metrics, 2)
    found = read(metrics)
    for domain, weights in WEIGHTS.items():
        for edge in (*WEIGHT_EDGES, math.inf):
            name = "+Inf" if math.isinf(edge) else str(edge)
            key = ("ppar_sample_weight_bucket", (("domain", domain), ("le", name)))
            assert found[key] == 2 * sum(weight <= edge for weight in weights)
        assert found["ppar_sample_weight_count", (("domain", domain),)] == 2 * len(weights)
        assert found["ppar_sample_weight_sum", (("domain", domain),)] == pytest.approx(2 * sum(weights))


def test_quantiles_fall_in_the_bin_of_the_weights(metrics: Metrics) -> None:
    publish(metrics, 1)
    found = read(metrics)
    assert 0.9 <= found["ppar_sample_weight_quantile", (("domain", "day"), ("quantile", "0.5"))] <= 1.0
    assert 0.2 <= found["ppar_sample_weight_quantile", (("domain", "fog"), ("quantile", "0.5"))] <= 0.3


def test_after_a_resume_counters_count_from_zero_and_gauges_tell_where_the_run_stands(
    metrics: Metrics,
) -> None:
    """So that the increase over a restart is what was done, for Prometheus sees a counter fall to 0."""
    metrics.run.publish_start(TrainState(step=20), figures().detail)
    found = read(metrics)
    assert (found["ppar_steps_total", ()], found["ppar_progress_ratio", ()]) == (0, 0.5)
    assert found["ppar_alignment_stage", ()] == 2  # step 20 of 40 began at 0.475; the third begins at 0.5
    key = ("ppar_prototype_cells_total", (("class", "road"), ("domain", "day")))
    assert found[key] == 0
    assert found["ppar_prototype_text_similarity", (("class", "sky"),)] == 0.8
    later = Detail(0.3, [0.9, 0.8], [0.0, 0.0], [[25.0, 0.0], [3.0, 4.0]], 7)
    publish(metrics, 21, detail=later)
    found = read(metrics)
    assert (found["ppar_steps_total", ()], found[key]) == (1, 15)


def test_non_finite_steps_and_rollbacks(metrics: Metrics) -> None:
    publish(metrics, 5, non_finite=2, finite=False)
    found = read(metrics)
    assert (found["ppar_skipped_steps_total", ()], found["ppar_non_finite_streak", ()]) == (1, 2)
    metrics.run.publish_rollback(TrainState(step=2))
    found = read(metrics)
    assert (found["ppar_rollbacks_total", ()], found["ppar_non_finite_streak", ()]) == (1, 0)
    assert found["ppar_progress_ratio", ()] == 2 / 40


def test_bank_counter_follows_the_cumulative_figure(metrics: Metrics) -> None:
    key = ("ppar_prototype_cells_total", (("class", "road"), ("domain", "day")))
    publish(metrics, 1)
    later = Detail(0.3, [0.9, 0.8], [0.0, 0.0], [[25.0, 0.0], [3.0, 4.0]], 7)
    publish(metrics, 2, detail=later)
    assert read(metrics)[key] == 25


def test_a_mean_over_nothing_leaves_the_last_value_but_a_broken_loss_shows(metrics: Metrics) -> None:
    publish(metrics, 1)
    publish(metrics, 2, reliability=[math.nan, math.nan], loss={"total": math.nan}, detail=None)
    found = read(metrics)
    assert found["ppar_reliability", (("domain", "day"),)] == -1.0
    assert math.isnan(found["ppar_loss", (("term", "total"),)])
    assert found["ppar_domain_discrepancy", ()] == 0.3


def test_registries_are_separate_and_the_global_one_is_untouched(metrics: Metrics) -> None:
    other = Metrics()
    publish(other, 3)
    assert read(metrics)["ppar_steps_total", ()] == 0
    names = {family.name for family in REGISTRY.collect()}
    assert not any(name.startswith("ppar_") for name in names)


def test_a_taken_port_is_refused_with_the_key_to_change(metrics: Metrics) -> None:
    with endpoint.start("127.0.0.1", 0, metrics.registry) as first:
        with pytest.raises(UserError, match=rf"127\.0\.0\.1:{first.port}.*monitoring\.port") as caught:
            endpoint.start("127.0.0.1", first.port, metrics.registry)
        assert "\n" not in str(caught.value)


def test_stop_frees_the_port_and_may_be_repeated(metrics: Metrics) -> None:
    first = endpoint.start("127.0.0.1", 0, metrics.registry)
    first.stop()
    first.stop()
    second = endpoint.start("127.0.0.1", first.port, metrics.registry)
    assert second.port == first.port
    second.stop()
