"""What run.dir notes of its remote."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from ppar_dist.checkpoint.owner import NOTE, OWNER, Owner, Ownership
from ppar_dist.storage.location import Remote
from ppar_dist.storage.remote import Entry, Storage

PLACE = Remote("s3://bucket/run")
SILENT_S = 1e6  # no beat within a test


@dataclass(frozen=True)
class Shelf(Storage):
    """Objects in memory."""

    objects: dict[str, bytes] = field(default_factory=dict)

    def read(self, place: Remote) -> bytes:
        if place.url not in self.objects:
            raise FileNotFoundError(place.url)
        return self.objects[place.url]

    def write(self, place: Remote, content: bytes) -> None:
        self.objects[place.url] = content

    def entries(self, folder: Remote) -> list[Entry]:
        return []


def claimed(run: Path, shelf: Shelf) -> Ownership:
    """A job that has the place; the one before it has said that it has ended."""
    run.mkdir(exist_ok=True)
    if raw := shelf.objects.get((PLACE / OWNER).url):
        last = Owner.from_text(raw)
        assert last is not None
        shelf.write(PLACE / OWNER, replace(last, ended=True).to_text().encode())
    owner = Ownership(run, PLACE, shelf, SILENT_S)
    owner.claim(False)
    return owner


def noted(run: Path) -> Owner:
    found = Owner.from_text((run / NOTE).read_bytes())
    assert found is not None
    return found


def test_a_rollback_is_noted_while_the_sending_thread_notes_what_it_sent(tmp_path: Path) -> None:
    owner = Ownership(tmp_path, PLACE, Storage(1.0), 60.0)
    with ThreadPoolExecutor(1) as sending:
        for step in range(40):
            sent = sending.submit(owner.note_safe, step)
            owner.note(step)
            sent.result()
            assert (noted(tmp_path).limit, noted(tmp_path).safe) == (step, step)


def test_a_rollback_that_was_not_sent_is_known_to_the_next_start_here(tmp_path: Path) -> None:
    shelf = Shelf()
    claimed(tmp_path / "here", shelf).note(20)
    assert claimed(tmp_path / "here", shelf).limit == 20
    assert claimed(tmp_path / "here", shelf).limit == 20


def test_a_rollback_is_forgotten_where_another_machine_has_gone_on_since(tmp_path: Path) -> None:
    shelf = Shelf()
    claimed(tmp_path / "here", shelf).note(20)  # dies before anything of it is sent
    claimed(tmp_path / "there", shelf).note(None)
    assert claimed(tmp_path / "here", shelf).limit is None
    claimed(tmp_path / "there", shelf).note(40)
    assert claimed(tmp_path / "there", shelf).limit == 40


def test_a_start_killed_before_it_could_claim_forgets_no_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf()
    claimed(tmp_path / "here", shelf).note(20)
    with monkeypatch.context() as killed:
        killed.setattr(Shelf, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Ownership(tmp_path / "here", PLACE, shelf, 0.0).claim(False)
    assert claimed(tmp_path / "here", shelf).limit == 20
