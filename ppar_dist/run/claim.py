"""Who may use a run's folder: its lock, its recorded configuration, and what is refused."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ppar_dist.checkpoint import list_checkpoints
from ppar_dist.class_sets import ClassSet, to_record
from ppar_dist.config.identity import changes_since, config_changes
from ppar_dist.config.load import dump_config, load_config
from ppar_dist.config.schema import Config
from ppar_dist.distributed.world import World
from ppar_dist.errors import InUse, UserError
from ppar_dist.files.durable import write_atomically
from ppar_dist.run import paths
from ppar_dist.run.lock import LOOK_S, RunLock
from ppar_dist.run.mirror import open_mirror

log = logging.getLogger(__name__)


def stored_config(run: Path) -> Config | None:
    """The configuration a run was started with; None if it is not stored.

    Raises:
        ConfigError: it cannot be read.
    """
    path = paths.config_file(run)
    return load_config(path) if path.exists() else None


class RunClaim:
    """This job's right to ``run.dir``; rank 0 decides and writes for all ranks."""

    def __init__(self, config: Config, world: World, lock: RunLock, classes: ClassSet) -> None:
        """``lock`` is taken by rank 0 in ``claim``; who made it closes it."""
        self._config, self._world, self._lock, self._classes = config, world, lock, classes
        self.path = config.run.dir
        self.mirror = open_mirror(config) if world.is_main else None  # claimed with the folder
        self._is_config_known = False  # config.yaml is there, or its content does not matter; rank 0 knows

    def claim(self, accept_changes: bool = False, alive: Callable[[], object] = lambda: None) -> None:
        """Make the folder and take its lock. Collective.

        ``alive`` is called while rank 0 waits for another job to end.

        Raises:
            UserError: another job works in it, it holds checkpoints of a configuration that computes
                something else, or it cannot be written.
        """
        self._world.on_main(lambda: self._claim(accept_changes, alive))

    def record(self) -> None:
        """Write configuration and class set, once the run is known to continue with them. Collective.

        Raises:
            UserError: it cannot be written.
        """
        self._world.on_main(self._write_config)

    def refuse_unknown_change(self, manifest: Mapping[str, Any]) -> None:
        """Where config.yaml was lost, compare the configuration with what a checkpoint noted. Collective.

        Raises:
            UserError: it computes something else.
        """

        def compare() -> None:
            if not self._is_config_known:
                self._refuse(changes_since(manifest["config"], self._config))

        self._world.on_main(compare)

    def has_checkpoints(self) -> bool:
        """Whether the folder holds any, so that a run in it goes on."""
        return bool(list_checkpoints(self.path))

    def restore_if_gone(self) -> bool:
        """Create the folder again where somebody deleted it under the run; returns whether that was so."""
        config = paths.config_file(self.path)
        try:
            if config.exists():
                return False
        except OSError:
            return False  # it is there, behind storage that fails
        log.warning("run.dir %s was deleted; recreated empty", self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write_config()
        except OSError as error:
            log.warning("%s", self._not_writable(error.strerror))
            return False
        except UserError as error:
            log.warning("%s", error)
            return False
        return True

    def close(self) -> None:
        """Leave word on the remote, if there is one, that this job has ended."""
        if self.mirror is not None:
            self.mirror.close()

    def _claim(self, accept_changes: bool, alive: Callable[[], object]) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            while not self._lock.try_acquire():
                time.sleep(LOOK_S)
                alive()
        except InUse:
            raise
        except OSError as error:
            raise self._not_writable(error.strerror) from None
        if self.mirror is not None:
            self.mirror.open(alive)
        try:
            before = None if accept_changes else stored_config(self.path)
            has_checkpoints = bool(list_checkpoints(self.path))
        except UserError as error:
            raise UserError(f"{error}. Give another run.dir, or --accept-changes to replace it") from None
        except OSError as error:
            raise self._not_writable(error.strerror) from None
        changes = config_changes(before, self._config) if before else []
        self._is_config_known = accept_changes or (before is not None and not changes)
        if has_checkpoints:
            self._refuse(changes)
        if not os.access(self.path, os.W_OK):
            raise self._not_writable("no permission")

    def _refuse(self, changes: list[str]) -> None:
        if changes:
            raise UserError(
                f"{self.path} was started with another configuration: {'; '.join(changes)}. "
                "Give another run.dir, or --accept-changes to continue with the new one"
            )

    def _write_config(self) -> None:
        try:
            write_atomically(paths.classes_file(self.path), to_record(self._classes))
            write_atomically(paths.config_file(self.path), dump_config(self._config))
        except OSError as error:
            raise self._not_writable(error.strerror) from None
        self._is_config_known = True

    def _not_writable(self, why: str | None) -> UserError:
        return UserError(f"run.dir {self.path} is not writable ({why}); give another one")
