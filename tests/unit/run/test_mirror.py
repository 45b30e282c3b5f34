"""What a run that has ended sends to its remote."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ppar_dist.checkpoint import owner
from ppar_dist.cli.job_commands import _send_results
from ppar_dist.run import mirror
from ppar_dist.storage.failures import StorageUnavailable
from ppar_dist.storage.location import Remote
from ppar_dist.storage.remote import Entry, Storage

PLACE = Remote("s3://bucket/run")


@dataclass(frozen=True)
class Shelf(Storage):
    """Objects in memory; uploads of some names fail."""

    objects: dict[str, bytes] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)

    def read(self, place: Remote) -> bytes:
        if place.url not in self.objects:
            raise FileNotFoundError(place.url)
        return self.objects[place.url]

    def write(self, place: Remote, content: bytes) -> None:
        if place.name in self.failing:
            raise StorageUnavailable(f"cannot write {place}")
        self.objects[place.url] = content

    def upload(self, path: Path, place: Remote) -> None:
        self.write(place, path.read_bytes())

    def entries(self, folder: Remote) -> list[Entry]:
        return []


def test_scores_that_could_not_be_sent_are_sent_by_the_same_command_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = Shelf()
    for module in (owner, mirror):
        monkeypatch.setattr(module, "Storage", lambda *_: shelf)
    run = SimpleNamespace(dir=tmp_path)
    faults = SimpleNamespace(storage_s=1.0, peer_s=1e6)
    config = cast(Any, SimpleNamespace(run=run, faults=faults, checkpoint=SimpleNamespace(remote=PLACE)))
    report = (PLACE / "report.html").url
    (tmp_path / "report.html").write_text("first")
    shelf.failing.add("report.html")
    mirror.send_results(config)  # as the job does at its end
    assert "run the same command again" in caplog.text
    assert report not in shelf.objects
    shelf.failing.clear()
    _send_results(config)
    assert shelf.objects[report] == b"first"
    (tmp_path / "report.html").write_text("of a later evaluation")
    _send_results(config)
    assert shelf.objects[report] == b"first"
