"""The model of many machines against a ring that passes real messages, and against its limits."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.scale.ring import all_reduce, links_of
from ppar_dist.doctor.scale import (
    Link,
    Machines,
    Work,
    all_reduce_s,
    efficiency,
    expected_slowest,
    predict,
    ring_s,
    stops_at,
    tree_s,
)

FAST, SLOW = Link(3e-6, 360e9), Link(10e-6, 40e9)
WORK = Work(
    local_batch=8,
    micro_batch=8,
    image_s=0.002,
    host_s=0.0,
    trained=100_000_000,
    zero_stage=0,
    bucket_bytes=200_000_000,
    buffer_bytes=40_000,
    overlaps=True,
    loader_s=0.0,
    workers=1,
    image_bytes=0.0,
    spread=0.0,
)


def machines(nodes: int, gpus: int = 8, inside: Link = FAST, network: Link = SLOW) -> Machines:
    return Machines(nodes, gpus, inside, network, cores=64, storage=1e9)


@pytest.mark.parametrize("ranks", [2, 3, 8, 13])
@pytest.mark.parametrize("values", [1, 1000])
def test_a_ring_takes_what_its_messages_take(ranks: int, values: int) -> None:
    vectors = [np.random.default_rng(rank).normal(size=ranks * values) for rank in range(ranks)]
    found, seconds = all_reduce(vectors, [SLOW] * ranks, 4)
    for each in found:
        np.testing.assert_allclose(each, sum(vectors))
    one_machine = machines(1, ranks, inside=SLOW)
    assert ring_s(one_machine, 4 * ranks * values) == pytest.approx(seconds, rel=1e-9)
    assert ring_s(one_machine, 4 * ranks * values, passes=1) == pytest.approx(seconds / 2, rel=1e-9)


@pytest.mark.parametrize(("nodes", "gpus"), [(2, 1), (2, 8), (4, 2), (8, 8)])
@pytest.mark.parametrize("values", [1, 10_000])
def test_a_ring_over_unlike_links_takes_about_what_its_messages_take(
    nodes: int, gpus: int, values: int
) -> None:
    job = machines(nodes, gpus)
    vectors = [np.ones(job.ranks * values) for _ in range(job.ranks)]
    _, seconds = all_reduce(vectors, links_of(job), 4)
    assert 0.6 * seconds <= ring_s(job, 4 * job.ranks * values) <= 1.5 * seconds


def test_one_rank_sends_nothing() -> None:
    assert (
        ring_s(machines(1, 1), 1e9) == tree_s(machines(1, 1), 1e9) == all_reduce_s(machines(1, 1), 1e9) == 0
    )
    for stage in (0, 1, 2):
        alone = predict(replace(WORK, zero_stage=stage, spread=0.1), machines(1, 1))
        assert alone.seconds == pytest.approx(8 * 0.002)
        assert alone.limit == "compute"


def test_a_tree_wins_with_many_machines_and_small_sums() -> None:
    assert (
        all_reduce_s(machines(128), 40_000) == tree_s(machines(128), 40_000) < ring_s(machines(128), 40_000)
    )
    large = 4e9
    assert all_reduce_s(machines(2), large) == ring_s(machines(2), large) < tree_s(machines(2), large)


def test_large_sums_take_twice_their_bytes_on_the_slowest_link() -> None:
    size = 1e12
    assert ring_s(machines(128), size) == pytest.approx(2 * size / SLOW.bytes_per_s, rel=0.01)
    assert tree_s(machines(128), size) == pytest.approx(2 * size / SLOW.bytes_per_s, rel=0.15)


def test_a_step_never_gets_shorter_with_more_machines() -> None:
    for stage in (0, 1, 2):
        work = replace(WORK, zero_stage=stage, spread=0.05)
        steps = [predict(work, machines(nodes)).seconds for nodes in (1, 2, 3, 4, 8, 16, 100, 128)]
        assert steps == sorted(steps)
        reached = [efficiency(work, machines(nodes)) for nodes in (1, 2, 4, 8, 128)]
        assert reached == sorted(reached, reverse=True)
        assert 0 < reached[-1] < reached[0] <= 1


def test_a_slower_network_and_more_parameters_take_longer() -> None:
    slower = replace(SLOW, bytes_per_s=SLOW.bytes_per_s / 4)
    base = predict(WORK, machines(4)).seconds
    assert predict(WORK, machines(4, network=slower)).seconds > base
    assert predict(replace(WORK, trained=2 * WORK.trained), machines(4)).seconds > base


def test_the_backward_pass_hides_sums_with_zero_only() -> None:
    long = replace(WORK, image_s=1.0)
    assert predict(long, machines(4)).gradients == pytest.approx(all_reduce_s(machines(4), 4e8), rel=1e-9)
    assert predict(replace(long, zero_stage=1), machines(4)).gradients == 0
    assert predict(replace(long, zero_stage=1, overlaps=False), machines(4)).gradients > 0


def test_zero_2_sums_after_every_micro_batch() -> None:
    cut = replace(WORK, micro_batch=2, image_s=1e-9)
    once = predict(replace(cut, zero_stage=1), machines(4)).gradients
    assert predict(replace(cut, zero_stage=2), machines(4)).gradients == pytest.approx(4 * once, rel=0.01)


def test_what_limits_is_named() -> None:
    job = machines(2)
    cases = {
        "compute": WORK,
        "host": replace(WORK, host_s=10.0),
        "stragglers": replace(WORK, image_s=1.0, spread=0.3),
        "gradients": replace(WORK, image_s=1e-6),
        "parameters": replace(WORK, image_s=0.01, zero_stage=1),
        "loader": replace(WORK, loader_s=1.0),
        "storage": replace(WORK, image_bytes=1e9),
    }
    slow_gather = replace(job, network=replace(SLOW, bytes_per_s=8e9))
    for name, work in cases.items():
        network = slow_gather if name == "parameters" else job
        base = work if name != "compute" else replace(work, image_s=1.0)
        assert predict(base, network).limit == name


def test_loaders_are_bound_by_workers_and_by_cores() -> None:
    work = replace(WORK, image_s=0.0, trained=0, buffer_bytes=0, loader_s=0.01, workers=2)
    job = machines(1)
    assert predict(work, job).seconds == pytest.approx(8 * 8 * 0.01 / 16)  # 8 ranks of 2 workers
    assert predict(work, replace(job, cores=12)).seconds == pytest.approx(8 * 8 * 0.01 / 4)  # 12 less 8
    assert predict(replace(work, workers=0), job).seconds == pytest.approx(8 * 0.01, rel=0.01)  # in each


def test_storage_is_shared_by_all_machines() -> None:
    work = replace(WORK, image_s=0.0, trained=0, buffer_bytes=0, image_bytes=1e6)
    alone = predict(work, machines(1)).seconds
    together = predict(work, replace(machines(10), storage_in_all=2e9)).seconds
    assert together == pytest.approx(5 * alone)


@pytest.mark.parametrize("ranks", [1, 2, 8, 64, 1024])
def test_the_slowest_rank_is_as_slow_as_drawn_ones(ranks: int) -> None:
    drawn = np.random.default_rng(0).normal(1, 0.05, (2000, ranks)).max(axis=1).mean()
    assert expected_slowest(ranks, 0.05) == pytest.approx(drawn, abs=0.004)
    assert expected_slowest(ranks, 0.0) == 1


def test_where_it_stops() -> None:
    assert stops_at(lambda number: 1 / number, [1, 2, 4]) == 4
    assert stops_at(lambda number: 1.0, [1, 2, 4]) is None


@pytest.mark.process
def test_the_formulas_load_no_torch() -> None:
    line = "import sys, ppar_dist.doctor.scale, ppar_dist.doctor.failure_cost, ppar_dist.doctor.cluster; "
    line += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line], check=False).returncode == 0


def test_storage_without_a_limit_is_each_machines() -> None:
    assert math.isinf(machines(4).storage_in_all)
    assert machines(4).storage_each() == 1e9
