"""A trace of some steps of each rank, by torch's profiler, for chrome://tracing and ui.perfetto.dev."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from ppar_dist.config.schema import Config
from ppar_dist.distributed.world import World
from ppar_dist.files.durable import make_folder, sync, sync_folder
from ppar_dist.run import paths

_SKIPPED, _WARM_UP = 3, 1  # steps after a start: slow ones, and those in which the profiler itself warms up

log = logging.getLogger(__name__)


class StepProfile:
    """Traces ``monitoring.profile_steps`` steps once, from the fifth after a start or resume on.

    Whatever goes wrong with it is a warning: the run goes on without a trace.
    """

    def __init__(self, config: Config, world: World, step: int) -> None:
        """The run is at ``step``. Nothing is loaded or done where no steps are to be traced."""
        self._folder, self._rank, self._is_main = paths.profile(config.run.dir), world.rank, world.is_main
        self._steps, self._first = config.monitoring.profile_steps, step + _SKIPPED + _WARM_UP + 1
        self._profile: profile | None = None
        if self._steps:
            self._try(lambda: self._start(world.device))

    def step(self) -> None:
        """A step has ended."""
        if self._profile is not None:
            self._try(self._profile.step)

    def close(self) -> None:
        """Write what there is: the run may end amid the traced steps."""
        if self._profile is not None:
            self._try(self._profile.stop)
            self._profile = None

    def _start(self, device: torch.device) -> None:
        if device.type == "cpu":  # where the profiler misses a GPU aloud
            os.environ.setdefault("KINETO_LOG_LEVEL", "5")
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        plan = schedule(skip_first=_SKIPPED, wait=0, warmup=_WARM_UP, active=self._steps, repeat=1)
        self._profile = profile(activities=kinds, schedule=plan, on_trace_ready=self._write)
        self._profile.start()

    def _write(self, done: profile) -> None:
        """Write the trace, whole or not at all, and end."""
        self._profile = None
        path = self._folder / f"step-{self._first:08d}.rank-{self._rank:05d}.json.gz"
        temporary = path.with_name(f".{os.getpid()}.{path.name}")  # the profiler compresses by the ending
        make_folder(self._folder)
        try:
            done.export_chrome_trace(str(temporary))
            sync(temporary)
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):  # where it was not renamed
                temporary.unlink(missing_ok=True)
        sync_folder(self._folder)
        if self._is_main:
            log.info("profile of each rank, from step %d on: %s", self._first, self._folder)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self._profile = None
            log.warning("rank %d is not profiled: %s: %s", self._rank, type(error).__name__, error)
