"""Goodput and checkpoint intervals against runs simulated event by event, and against their limits."""

from __future__ import annotations

import math
from statistics import fmean

import pytest

from benchmarks.scale.failing_run import Run
from ppar_dist.doctor.failure_cost import (
    Restart,
    Save,
    best_interval_s,
    daly_s,
    failures_per_1000_node_days,
    goodput,
    job_mtbf_s,
    lost_by_part,
    young_s,
)

HOUR, DAY = 3600.0, 86400.0


def simulated(interval_s: int, save: Save, restart_s: float, mtbf_s: float, steps: int = 200_000) -> float:
    """Mean goodput of runs of 1 s steps on 8 machines, the same failures for every interval."""
    runs = [
        Run(1.0, interval_s, save, restart_s, 8 * mtbf_s, 8, seed).finish(steps).goodput for seed in range(8)
    ]
    return fmean(runs)


@pytest.mark.parametrize(
    ("interval_s", "save", "restart_s", "mtbf_s"),
    [
        (60, Save(2.0), 0.0, HOUR),
        (200, Save(5.0, 60.0), 120.0, HOUR),
        (30, Save(0.5, 10.0), 300.0, HOUR / 2),
        (600, Save(20.0, 100.0), 200.0, HOUR),
    ],
)
def test_goodput_is_that_of_simulated_runs(
    interval_s: int, save: Save, restart_s: float, mtbf_s: float
) -> None:
    expected = goodput(interval_s, save, restart_s, mtbf_s)
    assert simulated(interval_s, save, restart_s, mtbf_s) == pytest.approx(expected, abs=0.012)


@pytest.mark.parametrize("save", [Save(2.0), Save(10.0, 20.0)])
def test_the_best_interval_loses_least_in_simulated_runs(save: Save) -> None:
    mtbf_s = HOUR
    best = best_interval_s(save, mtbf_s)
    tried = [round(best * factor) for factor in (0.2, 0.5, 1, 2, 5)]
    reached = [simulated(each, save, 60.0, mtbf_s) for each in tried]
    assert reached[2] >= max(reached) - 0.003, "flat near its top"
    assert reached[2] > reached[0] + 0.005
    assert reached[2] > reached[-1] + 0.005


@pytest.mark.parametrize("mtbf_s", [600.0, HOUR, 8 * HOUR, 30 * DAY])
@pytest.mark.parametrize("blocked_s", [0.1, 5.0, 60.0])
def test_the_best_interval_is_the_maximum_of_goodput(mtbf_s: float, blocked_s: float) -> None:
    save = Save(blocked_s)
    best = best_interval_s(save, mtbf_s)
    top = goodput(best, save, 30.0, mtbf_s)
    assert top >= goodput(1.01 * best, save, 30.0, mtbf_s)
    assert top >= goodput(0.99 * best, save, 30.0, mtbf_s)
    assert daly_s(save, mtbf_s) == pytest.approx(best, rel=0.001)
    assert young_s(save, mtbf_s) == pytest.approx(best, rel=0.2)
    assert young_s(save, mtbf_s) >= best


def test_an_interval_is_no_shorter_than_its_write() -> None:
    assert best_interval_s(Save(0.1, 500.0), HOUR) == 500.0


def test_without_failures_all_time_counts() -> None:
    save = Save(2.0, 10.0)
    assert best_interval_s(save, math.inf) == daly_s(save, math.inf) == math.inf
    assert goodput(math.inf, save, 300.0, math.inf) == 1
    assert goodput(98.0, save, 300.0, math.inf) == pytest.approx(0.98)
    assert goodput(98.0, save, 300.0, 1e15) == pytest.approx(0.98)
    assert simulated(98, save, 300.0, math.inf, 10_000) == pytest.approx(0.98, abs=0.001)


def test_goodput_falls_with_machines_and_costs() -> None:
    save = Save(2.0, 10.0)
    by_nodes = [
        goodput(best_interval_s(save, mtbf), save, 200.0, mtbf)
        for mtbf in (job_mtbf_s(40 * DAY, nodes) for nodes in (1, 8, 64, 128, 2048))
    ]
    assert by_nodes == sorted(by_nodes, reverse=True)
    assert goodput(100, save, 400.0, HOUR) < goodput(100, save, 200.0, HOUR)
    assert goodput(100, Save(2.0, 90.0), 200.0, HOUR) < goodput(100, save, 200.0, HOUR)
    assert goodput(1e9, save, 200.0, HOUR) == 0


def test_rates_of_machines_add_up() -> None:
    assert failures_per_1000_node_days(job_mtbf_s(50 * DAY, 128), 128) == pytest.approx(20)


def test_what_a_failure_costs_is_what_simulated_runs_lose() -> None:
    save, restart = Save(2.0, 20.0), Restart(noticed=60.0, queued=30.0)
    lost = lost_by_part(200.0, save, restart)
    runs = [Run(1.0, 200, save, restart.seconds, 8 * 2 * HOUR, 8, seed).finish(200_000) for seed in range(8)]
    failures = sum(run.failures for run in runs)
    again = sum(run.again_s for run in runs) / failures
    restarts = sum(run.restart_s for run in runs) / failures
    assert again == pytest.approx(lost["steps done again"], rel=0.12)
    assert restarts == pytest.approx(lost["noticed"] + lost["queued"], rel=0.03)
    assert sum(lost.values()) == pytest.approx(100 + 20 + 90)
