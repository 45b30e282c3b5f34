"""``ppar-dist doctor`` on ``checkpoint.remote``, before a real object server."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppar_dist.checkpoint.remote import RemoteRun
from ppar_dist.config.load import parse_config
from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.findings import Finding, Status
from ppar_dist.doctor.storage import remote
from ppar_dist.storage.location import Remote
from ppar_dist.storage.remote import _forget_drivers
from tests.cluster.fault_proxy import FaultProxy
from tests.cluster.object_server import ObjectServer
from tests.cluster.storage_faults import Error
from tests.cluster.test_remote_checkpoints import STORAGE, bucket, last_two, mirror_of, write

__all__ = ["bucket"]


def finding(place: Remote, run: Path) -> Finding:
    """What doctor finds of a remote."""
    data = {"root": str(run), "classes": "roads6", "sources": ["a"]}
    tree = {"run": {"dir": str(run)}, "data": data, "train": {"steps": 1, "global_batch": 2}}
    tree["model"] = {"backbone": {"kind": "open_clip"}}
    tree["checkpoint"], tree["faults"] = {"remote": place.url}, {"storage_s": 1}
    found = remote(ConfigCase(parse_config(tree)))
    assert found is not None
    return found


def test_a_remote_that_works_is_probed_and_left_as_it_was(
    bucket: Remote, storage_proxy: FaultProxy, tmp_path: Path
) -> None:
    place = bucket / "run"
    empty = finding(place, tmp_path / "run")
    assert (empty.status, "it holds no checkpoint" in empty.found) == (Status.OK, True), empty
    probes = [each for each in storage_proxy.requests if "/probes/" in each.path]
    assert {"PUT", "GET", "DELETE"} <= {each.method for each in probes}
    assert STORAGE.entries(bucket) == []
    mirror = mirror_of(tmp_path / "run", place, 60.0)
    mirror.open(lambda: None)
    mirror.copy(write(tmp_path / "run", 10), last_two)
    mirror.close()
    before = STORAGE.entries(place)
    used = finding(place, tmp_path / "run")
    assert "1 checkpoint, the newest of step 10" in used.found
    assert used.facts["steps"] == RemoteRun(place, STORAGE).steps() == [10]
    assert STORAGE.entries(place) == before


def test_what_keeps_a_remote_from_working_is_named(
    bucket: Remote,
    storage_proxy: FaultProxy,
    object_store: ObjectServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    missing = finding(Remote(f"{bucket}-2/run"), tmp_path / "run")
    assert missing.status == Status.FAILURE
    assert "there is no such bucket; create it, or correct the URL" in missing.found
    with storage_proxy.rule(Error(403, "AccessDenied"), method="DELETE"):
        undeletable = finding(bucket / "run", tmp_path / "run")
    assert undeletable.status == Status.FAILURE
    assert "storage refuses to remove" in undeletable.found
    with storage_proxy.rule(Error(503, "ServiceUnavailable")):
        silent = finding(bucket / "run", tmp_path / "run")
    assert silent.status == Status.FAILURE
    assert "cannot write" in silent.found
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    _forget_drivers()
    refused = finding(bucket / "run", tmp_path / "run")
    assert refused.status == Status.FAILURE
    assert "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in refused.found
    assert "wrong" not in refused.found
    print(missing.found, undeletable.found, silent.found, refused.found, sep="\n")
    _forget_drivers()
