"""TensorBoard's event files in ``RUN/tensorboard``: a new one at each start takes back later steps."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from ppar_dist.run import paths
from ppar_dist.trackers.tracker import About, Point, TakesBack

if TYPE_CHECKING:  # optional, and slow to load
    from torch.utils.tensorboard import FileWriter, SummaryWriter


class TensorBoard:
    """Writes scalars, and the configuration as text and as hyperparameters."""

    takes_back = TakesBack.LATER

    def __init__(self, about: About) -> None:
        """Nothing is written before ``open``."""
        self._about, self._folder = about, paths.tensorboard(about.run)
        self._writer: SummaryWriter | None = None

    def open(self, own: dict[str, Any], first: int) -> None:
        """Begin a file; readers forget what earlier files say of step ``first`` and later ones."""
        from torch.utils.tensorboard import SummaryWriter

        while list(self._folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
            time.sleep(0.05)  # readers take the files by name, which begins with the second of their start
        self._writer = SummaryWriter(str(self._folder), purge_step=first)
        self._write_settings({})

    def write(self, points: Sequence[Point]) -> None:
        """Write scalars."""
        assert self._writer is not None, "it is open"
        for step, values in points:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, scores: Mapping[str, float]) -> None:
        """Write the scores at the last step, and beside the hyperparameters."""
        self.write([Point(self._about.steps, scores)])
        self._write_settings(scores)

    def close(self) -> None:
        """Close the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    @staticmethod
    def _file(writer: SummaryWriter) -> FileWriter:
        assert writer.file_writer is not None, "text was written before"
        return writer.file_writer

    def _write_settings(self, scores: Mapping[str, float]) -> None:
        from torch.utils.tensorboard.summary import hparams

        assert self._writer is not None, "it is open"
        settings = dict(self._about.settings)
        text = yaml.safe_dump(settings, sort_keys=False)
        self._writer.add_text("configuration", "    " + text.replace("\n", "\n    "), 0)
        plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in settings.items()}
        # Not add_hparams, which makes a folder of its own.
        for summary in hparams(plain, dict.fromkeys(scores, 0.0)):  # type: ignore[no-untyped-call]
            self._file(self._writer).add_summary(summary)
        self._writer.flush()
