"""What a rank shows of itself while it runs: its metrics, its health, and where to find them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from types import TracebackType

from ppar_dist.config import Config, ConfigError
from ppar_dist.distributed import World
from ppar_dist.monitoring import endpoint
from ppar_dist.monitoring.endpoint import Endpoint, Health
from ppar_dist.monitoring.metrics import RunMetrics
from ppar_dist.monitoring.rank import RankMetrics
from ppar_dist.monitoring.registry import Registry
from ppar_dist.watchdog import OFF, RUNNING, Report

_NAMED = 3  # ranks with a problem; of more, only their number


class Monitor:
    """The metrics of one rank, and of the run on rank 0; a context manager that outlives the training.

    Attributes:
        rank: what every rank publishes.
        run: what rank 0 publishes for all; None before ``open``, and on the other ranks.
    """

    def __init__(self, config: Config, world: World) -> None:
        """Nothing is served before ``open``."""
        self._config, self._world = config, world
        self._registry = Registry()
        self.rank = RankMetrics(self._registry, world.rank, socket.gethostname())
        self.run: RunMetrics | None = None
        self._endpoint: Endpoint | None = None

    def open(self, domains: Sequence[str], classes: Sequence[str], report: Callable[[], Report]) -> None:
        """Serve from here on, where ``monitoring.enabled``. Collective.

        Args:
            domains: names of the sources, in the order of the figures.
            classes: names of the classes.
            report: tells where this rank stands.

        Raises:
            ConfigError: on every rank alike, when one of them cannot serve.
        """
        if self._world.is_main:
            ranks = self._world.world_size
            self.run = RunMetrics(self._registry, self._config, domains, classes, ranks)
        if not self._config.monitoring.enabled:
            return
        problem = self._serve(report)
        problems = [each for each in self._world.gather(problem) if each]
        if problems:
            more = f"; and {len(problems) - _NAMED} more ranks" if len(problems) > _NAMED else ""
            raise ConfigError("; ".join(problems[:_NAMED]) + more)

    def _serve(self, report: Callable[[], Report]) -> str | None:
        """Start the endpoint; returns why it cannot."""
        monitoring, stall_s = self._config.monitoring, self._config.faults.stall_s
        port = monitoring.port and monitoring.port + self._world.local_rank
        try:
            self._endpoint = endpoint.start(
                monitoring.address, port, self._registry, lambda: health(report(), stall_s)
            )
        except ConfigError as error:
            return f"rank {self._world.rank} on {socket.gethostname()} {error}"
        return None

    @property
    def url(self) -> str | None:
        """Where this rank's metrics are served; None where they are not."""
        return self._endpoint.url if self._endpoint is not None else None

    def close(self) -> None:
        """Stop serving; a second call does nothing."""
        if self._endpoint is not None:
            self._endpoint.stop()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def health(report: Report, stall_s: float) -> Health:
    """Whether a rank advances: it is in no phase longer than ``stall_s`` and has not said that it ends.

    Outside the steps, where the watchdog judges no rank by its time, it counts as well for any time.
    """
    late = report.phase != OFF and report.seconds > stall_s
    status = "ending" if report.state != RUNNING else "stalled" if late else "ok"
    facts = {
        "status": status,
        "rank": report.rank,
        "host": report.host,
        "step": report.step,
        "phase": report.phase,
        "seconds": round(report.seconds, 3),
        "limit_s": stall_s,
        "waits_for_others": report.waits,
    }
    return Health(status == "ok", facts)
