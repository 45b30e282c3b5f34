"""The metrics as a text file, for machines without an open port: a node exporter collects it."""

from __future__ import annotations

import logging
from pathlib import Path
from threading import Event, Thread

from prometheus_client import CollectorRegistry, write_to_textfile

from ppar_dist.files.durable import make_folder

_EVERY_S = 15.0

log = logging.getLogger(__name__)


class TextFile:
    """Writes a registry to a file every so often, by a thread of its own, whole or not at all.

    The last figures stay in the file when the run has ended.
    """

    def __init__(self, path: Path, registry: CollectorRegistry, every_s: float = _EVERY_S) -> None:
        """Write to ``path``, which ends in ``.prom``, once, and then every ``every_s`` seconds.

        Raises:
            OSError: it cannot be written.
        """
        self._path, self._registry, self._every_s = path, registry, every_s
        make_folder(path.parent)
        self._write()
        self._over = Event()
        self._thread = Thread(target=self._loop, name="metrics file", daemon=True)
        self._thread.start()

    def stop(self, seconds: float = 2.0) -> None:
        """Write once more and end; a second call does nothing.

        Waits for at most ``seconds``: storage that does not answer must not keep a rank from ending.
        """
        self._over.set()
        self._thread.join(seconds)

    def _write(self) -> None:
        write_to_textfile(str(self._path), self._registry)

    def _loop(self) -> None:
        failed = over = False
        while not over:
            over = self._over.wait(self._every_s)  # known before the write: figures may come during one
            try:
                self._write()
                failed = False
            except OSError as error:
                if not failed:
                    log.warning("cannot write monitoring.text_file=%s: %s", self._path, error.strerror)
                failed = True
