"""The thread that carries a run's records to one tracker, and what happens when that fails."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from ppar_dist.files.durable import write_atomically
from ppar_dist.run import paths
from ppar_dist.text import one_line
from ppar_dist.trackers.points import batches, held_out_point, train_point
from ppar_dist.trackers.tail import Tail
from ppar_dist.trackers.tracker import About, Point, Sent, TakesBack, Tracker

_EVERY_S = 2.0
_AGAIN_S, _AGAIN_MOST_S = 30.0, 600.0  # after a failure, and after many

log = logging.getLogger(__name__)


class Follower:
    """Carries records to one tracker, each step once, over kills, resumes and rollbacks.

    What was sent is noted in ``RUN/trackers/NAME.json`` after it was sent. The next start takes back, where
    the tracker can, what is later than that note or than the checkpoint, and sends it again.
    """

    def __init__(
        self,
        name: str,
        about: About,
        tracker: Tracker,
        on_failure: Callable[[], None] = lambda: None,
        every_s: float = _EVERY_S,
    ) -> None:
        """Nothing is sent before ``start``; ``on_failure`` is called at each failure."""
        self._name, self._about, self._tracker = name, about, tracker
        self._on_failure, self._every_s = on_failure, every_s
        self._note = paths.tracker_note(about.run, name)
        self._sent = _read(self._note)
        self._train = Tail(paths.metrics_file(about.run, "train"))
        self._held_out = Tail(paths.metrics_file(about.run, "eval"))
        self._lock, self._wake = Lock(), Event()
        self._back_to: int | None = None  # a step to which the run has returned, and the tracker has not
        self._scores: Mapping[str, float] | None = None
        self._is_open = self._is_over = False
        self._failures, self._not_before = 0, 0.0
        self._thread = Thread(target=self._loop, name=f"{name} tracker", daemon=True)

    def start(self, step: int) -> None:
        """Begin to send, of a run that is at ``step``."""
        self.rewind(step)
        self._thread.start()

    def rewind(self, step: int) -> None:
        """Records later than ``step`` were dropped, and will come again."""
        with self._lock:
            self._back_to = step if self._back_to is None else min(step, self._back_to)

    def finish(self, scores: Mapping[str, float]) -> None:
        """The run has ended with these scores; they are sent by ``close``."""
        self._scores = scores

    def close(self, seconds: float) -> None:
        """Send what is left, for at most ``seconds``: a service that hangs must not keep a job alive."""
        self._is_over = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("%s does not answer: what it lacks is in %s", self._name, self._note.parents[1])

    def _loop(self) -> None:
        over = False
        while not over:
            over = self._wake.wait(self._every_s)  # known before the look: records may come during one
            if not over and time.monotonic() < self._not_before:
                continue
            try:
                self._carry()
                if over and self._scores is not None:
                    self._finish(self._scores)
                if over and self._is_open:
                    self._tracker.close()
                if self._failures and not over:
                    log.warning("%s works again: nothing was lost", self._name)
                self._failures = 0
            except BaseException as error:  # of a library, some of which raise what is not an Exception
                self._failed(error)

    def _carry(self) -> None:
        """Send what is new."""
        with self._lock:
            step, self._back_to = self._back_to, None
        if step is not None:
            self._return(step)
        if not self._is_open:
            self._open()
        for kind in ("train", "held_out"):
            for batch in batches(self._points(kind)):
                self._tracker.write(batch)
                setattr(self._sent, kind, batch[-1].step)
                self._write_note()

    def _points(self, kind: str) -> Iterator[Point]:
        """The new points of a file that have something to say."""
        tail, point = (self._train, train_point) if kind == "train" else (self._held_out, held_out_point)
        found = (point(record) for record in tail.records() if record["step"] > getattr(self._sent, kind))
        return (each for each in found if each.values)

    def _return(self, step: int) -> None:
        """Forget what was sent of later steps than ``step``, and read the files again."""
        if self._tracker.takes_back is TakesBack.LATER:
            # The last step comes again: the scores stand there, and may have been sent.
            base = min(step, self._sent.train, self._about.steps - 1)
            self._sent.train, self._sent.held_out = base, min(base, self._sent.held_out)
        self._shut()

    def _open(self) -> None:
        if self._tracker.takes_back is TakesBack.ALL:
            self._sent.train = self._sent.held_out = -1
        elif self._tracker.takes_back is TakesBack.LATER:
            self._sent.held_out = min(self._sent.train, self._sent.held_out)
        self._tracker.open(self._sent.own, self._sent.train + 1)
        self._is_open = True
        self._write_note()

    def _shut(self) -> None:
        self._train.again()
        self._held_out.again()
        if self._is_open:
            self._is_open = False
            self._tracker.close()

    def _finish(self, scores: Mapping[str, float]) -> None:
        if self._tracker.takes_back is TakesBack.NONE and self._sent.own.get("scores") == dict(scores):
            return
        self._tracker.finish(scores)
        self._sent.own["scores"] = dict(scores)
        self._write_note()

    def _failed(self, error: BaseException) -> None:
        """Log the first of a row of failures, count each, and try again later."""
        if not self._failures:
            text = f"{type(error).__name__}: {one_line(error)}"  # without credentials
            log.warning("%s cannot be written (%s): training goes on, records wait", self._name, text)
        self._failures += 1
        self._on_failure()
        self._not_before = time.monotonic() + min(_AGAIN_S * 2.0 ** (self._failures - 1), _AGAIN_MOST_S)
        try:
            self._shut()
        except BaseException:  # what failed may fail to close as well
            log.debug("%s cannot be closed", self._name, exc_info=True)

    def _write_note(self) -> None:
        self._note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._note, json.dumps(asdict(self._sent), indent=1))


def _read(note: Path) -> Sent:
    """What was sent; nothing where there is no note that can be read."""
    try:
        value: Any = json.loads(note.read_text("utf-8"))
        sent = Sent(**value)
        if type(sent.train) is int and type(sent.held_out) is int and isinstance(sent.own, dict):
            return sent
    except FileNotFoundError:
        return Sent()
    except (OSError, ValueError, TypeError):
        pass
    log.warning("%s cannot be read: all records are sent again", note)
    return Sent()
