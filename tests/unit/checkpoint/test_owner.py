"""What run.dir notes of its remote."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ppar_dist.checkpoint.owner import NOTE, Owner, Ownership
from ppar_dist.storage.location import Remote
from ppar_dist.storage.remote import Storage

PLACE = Remote("s3://bucket/run")


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
