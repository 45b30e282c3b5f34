"""What the GPU recipes would reach on up to 1,024 GPUs, and what failures would cost them.

    python -m benchmarks.scale [--docs docs/scale.md]

No GPU and no network: operations are counted, rates are assumed, as docs/scale.md lists them. The intervals
between checkpoints and the goodput are compared with runs simulated event by event.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.arguments import described
from benchmarks.pages import insert, markdown
from benchmarks.scale.failing_run import Run
from benchmarks.scale.jobs import MOST_AT_ONCE, RECIPES, STORAGE, Job, job, machines
from ppar_dist.doctor.failure_cost import (
    Save,
    best_interval_s,
    daly_s,
    failures_per_1000_node_days,
    goodput,
    job_mtbf_s,
    lost_by_part,
    young_s,
)
from ppar_dist.doctor.scale import Machines, Work, efficiency, predict, stops_at

COMMAND = "python -m benchmarks.scale --docs docs/scale.md"
HOUR = 3600.0
LARGE_BATCH = 1024
MANY = (8, 16, 64, 256, 1024)  # GPUs
NETWORKS = (100, 400, 3200)  # Gbit/s of a machine
PUBLISHED = ((1024, 7.9, "observed"), (16384, 1.8, "projected"))  # GPUs, hours: arXiv 2410.21680
NODE_MTBF_S = 7.9 * HOUR * 128
SEEDS, FAILURES, PIECES = 12, 200, 60  # of the simulation: runs, failures in each, steps of an interval
MOST_INTERVALS = 100_000  # of a simulated run

Rows = list[list[str]]


def own_batch(jobs: Sequence[Job]) -> Rows:
    """Strong scaling with the batch that a recipe has."""
    numbers = (1, 2, 4, 8, 16)
    rows = [["recipe", "images a step", *(f"{count} GPU{'s' * (count > 1)}" for count in numbers)]]
    for each in jobs:
        batch = each.config.train.global_batch
        rows.append([each.name, str(batch), *(_speed_up(each, batch, count, 400) for count in numbers)])
    return rows


def large_batch(jobs: Sequence[Job]) -> Rows:
    """Strong scaling with a batch that feeds all GPUs."""
    rows = [["recipe", "network, Gbit/s", *(f"{count} GPUs" for count in MANY)]]
    for each in jobs[:-1]:  # the last two differ in the batch alone
        for gbps in NETWORKS:
            cells = (_speed_up(each, LARGE_BATCH, count, gbps) for count in MANY)
            rows.append([each.name, str(gbps), *cells])
    return rows


def growing_batch(jobs: Sequence[Job]) -> Rows:
    """Weak scaling: as many images for each GPU, whatever their number."""
    rows = [
        [
            "recipe",
            "network, Gbit/s",
            *(f"{count} GPUs" for count in MANY),
            "below 50 % from",
            "images/s of 1,024",
        ]
    ]
    numbers = [2**power for power in range(3, 15)]
    for each in jobs[:-1]:
        work = each.work(MOST_AT_ONCE)
        for gbps in NETWORKS:
            cells = (_share(work, machines(count, gbps)) for count in MANY)
            first = stops_at(lambda count, w=work, g=gbps: efficiency(w, machines(count, g)), numbers)  # type: ignore[misc]
            rate = predict(work, machines(1024, gbps)).images_per_second
            end = f"{first:,} GPUs" if first else "not up to 16,384"
            rows.append([each.name, str(gbps), *cells, end, f"{rate:,.0f}"])
    return rows


def feeding(jobs: Sequence[Job]) -> Rows:
    """What loaders and storage must give a machine, with nothing else in the way."""
    rows = [
        [
            "recipe",
            "images/s of a machine",
            "loader cores",
            "read by a machine, GB/s",
            "read by 128 machines, GB/s",
            *(f"busy with {name}, {rate / 1e9:g} GB/s" for name, rate in STORAGE.items()),
            "checkpoint, GB",
            "read at a restart of 128 machines, GB",
        ]
    ]
    for each in jobs[:-1]:
        work, one = each.work(MOST_AT_ONCE), machines(8, 3200)
        step = predict(work, one)
        rate = step.images / (step.compute + step.host)
        read = rate * work.image_bytes / 1e9
        sizes = each.sizes(machines(1024, storage="shared"))
        figures = [f"{rate:,.0f}", f"{rate * work.loader_s:.0f}", f"{read:.1f}", f"{128 * read:.0f}"]
        figures += [f"{min(1, each_has / 1e9 / read):.0%}" for each_has in STORAGE.values()]
        rows.append([each.name, *figures, f"{sizes.written / 1e9:.2f}", f"{128 * sizes.whole / 1e9:.0f}"])
    return rows


def failures(jobs: Sequence[Job]) -> Rows:
    """Goodput as configured and at its best, beside simulated runs."""
    rows = [
        [
            "recipe",
            "GPUs",
            "between failures",
            "best interval",
            "`checkpoint.every` for it",
            "goodput",
            "simulated",
            "as configured",
            "every 1 h",
        ]
    ]
    for each in (jobs[0], jobs[2]):
        for count in (8, 64, 256, 1024, 4096):
            where = machines(count, storage="shared")  # of checkpoints
            save, restart_s = each.save(where), each.restart(where).seconds
            mtbf_s = job_mtbf_s(NODE_MTBF_S, where.nodes)
            step_s = predict(each.work(MOST_AT_ONCE), machines(count)).seconds
            best = best_interval_s(save, mtbf_s)
            own = each.config.checkpoint.every * step_s
            share, configured, hourly = (goodput(t, save, restart_s, mtbf_s) for t in (best, own, HOUR))
            mean, spread = simulated(best, save, restart_s, where.nodes)
            rows.append(
                [
                    each.name,
                    f"{count:,}",
                    _span(mtbf_s),
                    _span(best),
                    f"{round(best / step_s):,}",
                    f"{share:.2%}",
                    f"{mean:.2%} ± {spread:.2%}",
                    f"{configured:.2%} ({_span(own)})",
                    f"{hourly:.2%}",
                ]
            )
    return rows


def lost(jobs: Sequence[Job]) -> Rows:
    """What a failure costs on 128 machines, part by part, at the best interval."""
    where, rows = machines(1024, storage="shared"), [["part", *(each.name for each in (jobs[0], jobs[2]))]]
    columns = []
    for each in (jobs[0], jobs[2]):
        save = each.save(where)
        best = best_interval_s(save, job_mtbf_s(NODE_MTBF_S, where.nodes))
        parts = lost_by_part(best, save, each.restart(where))
        columns.append(parts | {"all": sum(parts.values())})
    rows += [[name, *(f"{column[name]:.1f} s" for column in columns)] for name in columns[0]]
    return rows


def intervals() -> Rows:
    """The formulas beside the interval that loses least in simulated runs."""
    rows = [["between failures", "blocked", "Young", "Daly", "exact", "simulated", "goodput lost by Young's"]]
    for hours in (7.9, 1.8, 0.25):
        for blocked_s in (0.2, 5.0, 60.0):
            save, mtbf_s = Save(blocked_s), hours * HOUR
            best, young = best_interval_s(save, mtbf_s), young_s(save, mtbf_s)
            worse = goodput(best, save, 0.0, mtbf_s) - goodput(young, save, 0.0, mtbf_s)
            cells = [f"{value:.1f} s" for value in (young, daly_s(save, mtbf_s), best)]
            low, high = simulated_best(save, mtbf_s)
            found = f"{low:.0f} to {high:.0f} s"
            rows.append([f"{hours:g} h", f"{blocked_s:g} s", *cells, found, f"{worse:.3%}"])
    return rows


def simulated(interval_s: float, save: Save, restart_s: float, nodes: int) -> tuple[float, float]:
    """Mean goodput of simulated runs, and its standard error."""
    steps = min(MOST_INTERVALS, int(FAILURES * NODE_MTBF_S / nodes / interval_s) + 1) * PIECES
    found = [
        Run(interval_s / PIECES, PIECES, save, restart_s, NODE_MTBF_S, nodes, seed).finish(steps).goodput
        for seed in range(1000 * nodes, 1000 * nodes + SEEDS)  # other failures for each row
    ]
    return _mean_and_error(found)


def simulated_best(save: Save, mtbf_s: float) -> tuple[float, float]:
    """The shortest and longest of 15 tried intervals that are within two standard errors of the best."""
    guess, reached = best_interval_s(save, mtbf_s), {}
    for power in range(-7, 8):
        interval_s = guess * 1.15**power
        steps = min(MOST_INTERVALS, int(FAILURES * mtbf_s / interval_s) + 1) * PIECES
        reached[interval_s] = _mean_and_error(
            [
                Run(interval_s / PIECES, PIECES, save, 0.0, mtbf_s, 1, seed).finish(steps).goodput
                for seed in range(SEEDS)
            ]
        )
    top, error = max(reached.values())
    good = [interval_s for interval_s, (mean, _) in reached.items() if mean >= top - 2 * error]
    return min(good), max(good)


def published() -> Rows:
    """What published times between failures say of one machine."""
    rows = [["GPUs", "hours between failures", "failures in 1,000 days of a machine", "days of one machine"]]
    for gpus, hours, how in PUBLISHED:
        rate = failures_per_1000_node_days(hours * HOUR, gpus // 8)
        rows.append([f"{gpus:,}", f"{hours:g}, {how}", f"{rate:.1f}", f"{1000 / rate:.0f}"])
    return rows


def main() -> None:
    """Print all tables, or put them into the page."""
    parser = described(__doc__)
    parser.add_argument("--docs", type=Path, help="page that gets the tables")
    options = parser.parse_args()
    jobs = [job(name) for name in RECIPES]
    tables = {
        "own batch": own_batch(jobs),
        "large batch": large_batch(jobs),
        "growing batch": growing_batch(jobs),
        "feeding": feeding(jobs),
        "published": published(),
        "failures": failures(jobs),
        "lost": lost(jobs),
        "intervals": intervals(),
    }
    for name, rows in tables.items():
        if options.docs is None:
            print(f"{name}\n\n{markdown(rows)}\n", flush=True)
        else:
            insert(options.docs, name, COMMAND, markdown(rows))


def _speed_up(each: Job, batch: int, gpus: int, gbps: float) -> str:
    """How much faster than one GPU with the whole batch, and what limits; –: less than an image each."""
    if batch % gpus:
        return "–"
    alone = predict(each.work(batch), machines(1)).images_per_second
    step = predict(each.work(batch // gpus), machines(gpus, gbps))
    return f"{step.images_per_second / alone:.1f}× {step.limit}"


def _share(work: Work, where: Machines) -> str:
    """Efficiency, and what limits."""
    return f"{efficiency(work, where):.0%} {predict(work, where).limit}"


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error."""
    return fmean(values), stdev(values) / len(values) ** 0.5


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / HOUR:.1f} h" if seconds < 48 * HOUR else f"{seconds / 24 / HOUR:.0f} days"


if __name__ == "__main__":
    main()
