"""The cost of monitoring per step: of its parts, and of steps with and without it, paired in one run.

    PPAR_TEST_DATA=D/.. python -m benchmarks.speed.monitoring [--rounds 9] [--scrape-s 5] [key=value ...]

The parts are CPU times of the calls themselves, medians of many: their sum is what a step loses. The paired
rounds, of the process's CPU time on one thread while it is scraped, would show if something was forgotten;
the parts are far below what rounds differ by on a shared machine.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from benchmarks.speed.trainers import batches_in_memory, monitored_trainer, street_options
from ppar_dist.monitoring.monitor import Monitor
from ppar_dist.ppar.diagnostics import Figures
from ppar_dist.training.recorder import bad_by_reason
from ppar_dist.training.trainer import Trainer

PIXEL_STAGE = 0.9  # progress: the stage in which all figures are there


class Side:
    """One trainer, with or without monitoring."""

    def __init__(self, trainer: Trainer, monitor: Monitor, batches: int) -> None:
        self.trainer, self.monitor = trainer, monitor
        self.batches = batches_in_memory(trainer, batches)
        self.figures: Figures | None = None

    def step(self, number: int, publishes: bool) -> None:
        """One step, as ``Trainer.fit`` takes it, without the run's own files."""
        trainer, batch = self.trainer, self.batches[number % len(self.batches)]
        trainer.state.step = round(PIXEL_STAGE * trainer.config.train.steps) + number % 10
        trainer.state.samples_seen = int(batch.positions[0])
        self.figures = trainer.train_step([batch])
        if publishes:
            self.publish(self.figures)

    def publish(self, figures: Figures) -> None:
        """What ``Recorder.step`` publishes."""
        engine, monitor = self.trainer.learner.engine, self.monitor
        assert monitor.run is not None
        monitor.rank.publish_step(0.001)
        if figures.detail is not None:
            monitor.rank.publish_checksum(figures.detail.prototype_checksum)
        state, bad = self.trainer.state, bad_by_reason(figures, self.trainer.domains)
        monitor.run.publish_step(state, figures, bad, engine.learning_rates(), engine.grad_norm(), 0.2)
        self.publish_speed()

    def publish_speed(self) -> None:
        """Of it what tells how the machine is used."""
        log, run = self.trainer.log, self.monitor.run
        assert run is not None
        speed = log._throughput.images_per_second(0.2)
        run.publish_speed(speed, log._throughput.mfu(speed))
        log._time.add(self.trainer.state.step, 0.2)

    def seconds(self, steps: int, publishes: bool) -> float:
        """CPU seconds of this process per step."""
        state, check = self.trainer.learner.objective.state, self.trainer.replica_check
        if not publishes:
            state.checksum = lambda: 0  # type: ignore[union-attr, method-assign]
            check.note = lambda detail: None  # type: ignore[method-assign]
        began = time.process_time()
        for number in range(steps):
            self.step(number, publishes)
        taken = time.process_time() - began
        if not publishes:
            del state.checksum, check.note  # type: ignore[union-attr]
        return taken / steps


def cost(call: Callable[[], object], repeats: int = 300) -> float:
    """Median CPU seconds of ``call`` on this thread."""
    taken = []
    for _ in range(repeats):
        began = time.thread_time()
        call()
        taken.append(time.thread_time() - began)
    return statistics.median(taken)


def cost_of_scrape(url: str, repeats: int = 30) -> float:
    """CPU seconds that this process spends on one scrape, less what the client in it spends."""
    client = 0.0
    began = time.process_time()
    for _ in range(repeats):
        before = time.thread_time()
        urllib.request.urlopen(url, timeout=60).read()
        client += time.thread_time() - before
        time.sleep(0.25)  # else the page before would be served again
    return (time.process_time() - began - client) / repeats


@contextmanager
def scraped(url: str, every_s: float) -> Iterator[None]:
    """Scrape ``url`` in the background."""
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(every_s):
            urllib.request.urlopen(url, timeout=60).read()

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def parts(side: Side, every: int, scrapes: float) -> list[tuple[str, float, float]]:
    """Name, seconds, and times per step of everything that publishing does."""
    trainer, figures = side.trainer, side.figures
    state = trainer.learner.objective.state
    assert state is not None
    assert figures is not None
    plain, full = replace(figures, detail=None), replace(figures, detail=state.detail())

    def compare() -> None:
        check, buffer = trainer.replica_check, trainer.learner.objective.buffer
        check.note(full.detail)
        buffer.add("checksum", check.tell())
        check.is_broken(torch.zeros(check.PIECES))

    assert side.monitor.url is not None
    return [
        ("figures of a step", cost(lambda: side.publish(plain)), 1 - 1 / every),
        ("figures of a step that is written down", cost(lambda: side.publish(full)), 1 / every),
        ("of both: images per second, MFU, goodput", cost(side.publish_speed), 0),
        ("mark of the time that went by", cost(trainer.log.mark), 1 / every),
        ("checksum of the prototype bank", cost(state.checksum), 1 / every),
        ("checksums told and compared", cost(compare), 1 / every),
        ("a scrape", cost_of_scrape(side.monitor.url), scrapes),
    ]


def report(side: Side, options: argparse.Namespace) -> None:
    """Print the table of parts and the paired rounds."""
    side.seconds(10, True)  # warm up
    base = statistics.median(side.seconds(10, False) for _ in range(3))
    every = side.trainer.config.train.log_every
    print(f"a step without publishing: {base:.3f} s; one in {every} is written down", flush=True)
    print("| part | µs | times per step | % of a step |\n|---|---|---|---|")
    total = 0.0
    for name, seconds, times in parts(side, every, base / options.scrape_s):
        total += seconds * times
        print(f"| {name} | {1e6 * seconds:.0f} | {times:.3g} | {100 * seconds * times / base:.3f} |")
    print(f"| all | {1e6 * total:.0f} | | **{100 * total / base:.3f}** |", flush=True)
    assert side.monitor.url is not None
    ratios = []
    for number in range(options.rounds):
        sides = {}
        for publishes in (True, False) if number % 2 else (False, True):  # neither is always the first
            with scraped(side.monitor.url, options.scrape_s if publishes else 3600):
                sides[publishes] = side.seconds(options.steps, publishes)
        ratios.append(sides[True] / sides[False])
    ratios.sort()
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    print(
        f"paired, {options.rounds} rounds of {options.steps} steps each: CPU time with / without "
        f"{statistics.median(ratios):.4f} (half of the rounds within {low:.4f} to {high:.4f})"
    )


def main() -> None:
    """Train a few steps, publish, and print the cost."""
    parser = street_options(__doc__, steps=20, rounds=9)
    parser.add_argument("--scrape-s", type=float, default=5.0, help="seconds between scrapes")
    options = parser.parse_args()
    with monitored_trainer(options) as (trainer, monitor):
        report(Side(trainer, monitor, 8), options)


if __name__ == "__main__":
    main()
