"""What a rank shows of itself while it runs: its metrics, its health, and where to find them."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ppar_dist.config.schema import Config
from ppar_dist.distributed import environment
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError
from ppar_dist.monitoring import endpoint
from ppar_dist.monitoring.endpoint import Endpoint, Health
from ppar_dist.monitoring.health import DEFAULT_PORT
from ppar_dist.monitoring.metrics import RunMetrics, run_name
from ppar_dist.monitoring.rank import RankMetrics
from ppar_dist.monitoring.registry import Registry
from ppar_dist.monitoring.targets import Target, TargetsFile, reachable_address
from ppar_dist.monitoring.textfile import TextFile
from ppar_dist.trackers.all_trackers import Trackers, refuse_missing
from ppar_dist.watchdog import OFF, RUNNING, Heartbeat

_NAMED = 3  # ranks with a problem; of more, only their number
_LOOK_S = 0.1
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

log = logging.getLogger(__name__)


class Monitor:
    """The metrics of one rank, and of the run on rank 0; a context manager that outlives the training.

    Attributes:
        rank: what every rank publishes.
        run: what rank 0 publishes for all; None before ``open``, and on the other ranks.
        trackers: where rank 0's records go besides; None likewise.
    """

    def __init__(self, config: Config, world: World) -> None:
        """Nothing is served before ``open``."""
        self._config, self._world = config, world
        self._registry = Registry()
        self.rank = RankMetrics(self._registry, world.rank, socket.gethostname())
        self.run: RunMetrics | None = None
        self.trackers: Trackers | None = None
        self._endpoint: Endpoint | None = None
        path = config.monitoring.targets_file
        self._targets = TargetsFile(path) if path is not None else None
        self._text: TextFile | None = None

    def open(self, domains: Sequence[str], classes: Sequence[str], report: Callable[[], Heartbeat]) -> None:
        """Serve from here on, where ``monitoring.enabled``, and write the configured files. Collective.

        Args:
            domains: names of the sources, in the order of the figures.
            classes: names of the classes.
            report: says where this rank is.

        Raises:
            UserError: on every rank alike, when one of them cannot serve, or rank 0 cannot write or track.
        """
        self.rank.follow(lambda: report().seconds)
        self.rank.follow_memory(self._world.device)
        if self._world.is_main:
            ranks = self._world.world_size
            self.run = RunMetrics(self._registry, self._config, domains, classes, ranks)
        targets = self._world.gather(self._serve(report)) if self._config.monitoring.enabled else []
        _refuse([each for each in targets if isinstance(each, str)])
        self._world.on_main(lambda: self._write_files(targets))
        self._world.on_main(self._open_trackers)

    def _open_trackers(self) -> None:
        refuse_missing(self._config)
        if not self._config.monitoring.trackers:
            return
        failures = self._registry.counter(
            "tracker_failures", "Times that a tracker could not take what it was sent.", "tracker"
        )
        for name in self._config.monitoring.trackers:
            failures.labels(name)
        self.trackers = Trackers(self._config, lambda name: failures.labels(name).inc())

    def _serve(self, report: Callable[[], Heartbeat]) -> Target | str:
        """Start the endpoint; returns where others reach it, or why it cannot be."""
        monitoring, world, host = self._config.monitoring, self._world, socket.gethostname()
        stall_s = self._config.faults.stall_s
        try:
            self._endpoint = self._start(lambda: health(report(), stall_s))
        except UserError as error:
            return f"rank {world.rank} on {host} {error}"
        return Target(world.rank, host, reachable_address(monitoring.address, world), self._endpoint.port)

    def _start(self, healthy: Callable[[], Health]) -> Endpoint:
        """An endpoint on the configured port; the usual one gives way to another that is free."""
        monitoring, local_rank = self._config.monitoring, self._world.local_rank
        asked = DEFAULT_PORT if monitoring.port is None else monitoring.port
        port = asked and asked + local_rank
        try:
            return endpoint.start(monitoring.address, port, self._registry, healthy)
        except UserError:
            if monitoring.port is not None:
                raise
            started = endpoint.start(monitoring.address, 0, self._registry, healthy)
            log.warning(
                "metrics port %d is in use: rank %d serves at %s", port, self._world.rank, started.url
            )
            return started

    def _write_files(self, targets: Sequence[Target]) -> None:
        """Write the file of targets and begin to write the text file, each if it is configured.

        Raises:
            UserError: one of them cannot be written.
        """
        monitoring = self._config.monitoring
        if self._targets is not None and targets:
            with _refusing("targets_file", monitoring.targets_file):
                self._write_targets(self._targets, targets)
        if monitoring.text_file is not None:
            with _refusing("text_file", monitoring.text_file):
                self._text = TextFile(monitoring.text_file, self._registry)

    def _write_targets(self, file: TargetsFile, targets: Sequence[Target]) -> None:
        address, hosts = self._config.monitoring.address, {target.host for target in targets}
        if len(hosts) > 1 and address in _LOOPBACK:
            log.warning("monitoring.address=%s is reached from the rank's own machine only", address)
        job = environment.scheduler_job()
        labels = {"run": run_name(self._config)} | ({"job_id": job} if job else {})
        file.write(targets, labels)

    @property
    def url(self) -> str | None:
        """Where this rank's metrics are served; None where they are not."""
        return self._endpoint.url if self._endpoint is not None else None

    def linger(self, enough: Callable[[], bool]) -> None:
        """Wait until the last figures were fetched, if this rank is scraped at all.

        That is, if it was scraped within ``monitoring.linger_s``, for which this waits at most, or until
        ``enough()``.
        """
        if self._endpoint is None:
            return
        began, limit = time.monotonic(), self._config.monitoring.linger_s
        if began - self._endpoint.served > limit:
            return
        while self._endpoint.served < began and time.monotonic() < began + limit and not enough():
            time.sleep(_LOOK_S)

    def withdraw(self) -> None:
        """Take back the file of targets, within seconds; for ends that do not reach ``close``."""
        if self._targets is not None:
            self._targets.withdraw()

    def close_trackers(self) -> None:
        """Send what trackers lack, within seconds; a second call does nothing."""
        if self.trackers is not None:
            self.trackers.close()

    def close(self) -> None:
        """Withdraw the targets, write the last figures and stop serving; a second call does nothing."""
        self.withdraw()
        self.close_trackers()
        if self._text is not None:
            self._text.stop()
        if self._endpoint is not None:
            self._endpoint.stop()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def health(report: Heartbeat, stall_s: float) -> Health:
    """Whether a rank advances: it is in no phase longer than ``stall_s`` and has not announced its end.

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


@contextmanager
def _refusing(key: str, path: Path | None) -> Iterator[None]:
    """The block writes a file that the configuration names."""
    try:
        yield
    except OSError as error:
        text = f"cannot write monitoring.{key}={path}: {error.strerror}; give another path"
        raise UserError(text) from None


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = f"; and {len(problems) - _NAMED} more ranks" if len(problems) > _NAMED else ""
        raise UserError("; ".join(problems[:_NAMED]) + more)
