"""What a user does with a run in a bucket, by its URL; TLS; and credentials that change while a job runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import s3fs
from PIL import Image
from safetensors.torch import load_file

import ppar_dist
from ppar_dist import checkpoint
from ppar_dist.checkpoint.remote import RemoteRun
from ppar_dist.cli import parser
from ppar_dist.storage import remote
from ppar_dist.storage.failures import StorageDenied
from ppar_dist.storage.location import Remote
from ppar_dist.storage.remote import Storage
from tests.cluster.fault_proxy import FaultProxy, fault_proxy
from tests.cluster.object_server import ACCESS_KEY, NEXT_KEY, SECRET_KEY, ObjectServer
from tests.cluster.storage_faults import EXPIRED, Do, Error, Stall
from tests.cluster.test_remote_data import computed, job, local, store
from tests.range_server import certificate
from tests.ranks import run_ranks
from tests.unit.export.models import ATTO, make_run

__all__ = ["local", "store"]

CONTENT = bytes(range(256)) * 40
STORAGE = Storage(20.0)
STEP = 6


@pytest.fixture
def bucket(
    object_store: ObjectServer, storage_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Remote]:
    """A bucket of its own, which this process reaches through the proxy."""
    for name, value in object_store.environment(storage_proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    name = f"use-{os.getpid()}-{abs(hash(tmp_path)):x}"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
    remote._forget_drivers()  # the proxy has another port
    yield Remote(f"s3://{name}")
    remote._forget_drivers()


@pytest.fixture
def run(bucket: Remote, tmp_path: Path) -> Remote:
    """A run of random weights that has gone to the bucket, and an image."""
    place, data = bucket / "run", {"sources": ["a"], "root": f"{bucket}/shards", "classes": "roads6"}
    config = make_run(
        *(tmp_path / "run", ATTO),
        data=data | {"size": 96, "crop": [32, 32]},
        checkpoint={"remote": place.url},
        targets={"night": f"{bucket}/shards/night"},
    )
    tensors = load_file(tmp_path / "run" / "checkpoints" / "step-00000004" / "model.safetensors")
    texts = {"state.json": json.dumps({"step": STEP, "best_step": STEP})}
    facts = {"world_size": 1, "whole_config": config.model_dump(mode="json")}  # as training writes it
    snapshot = checkpoint.Snapshot(STEP, {"model.safetensors": tensors}, texts, facts)
    RemoteRun(place, STORAGE).publish(checkpoint.publish(tmp_path / "run", snapshot))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "street.png")
    return place


def command(*words: object) -> int:
    return parser.main([str(word) for word in words])


def test_commands_take_the_url_of_a_run_as_its_path(run: Remote, tmp_path: Path) -> None:
    image, step = tmp_path / "street.png", run / "checkpoints" / checkpoint.checkpoint_name(STEP)
    for number, place in enumerate((tmp_path / "run", run, f"{run}/", step)):
        assert command("predict", place, image, "--out", tmp_path / f"labels-{number}") == 0
    expected = (tmp_path / "labels-0" / "street.png").read_bytes()
    assert all((tmp_path / f"labels-{n}" / "street.png").read_bytes() == expected for n in (1, 2, 3))
    assert command("predict", run, image, "--which", "best", "--out", tmp_path / "best") == 0
    assert command("export", run, "--out", tmp_path / "model") == 0
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert run.parent.name not in json.dumps(written), "the bucket is nobody's business"
    assert command("predict", tmp_path / "model", image, "--out", tmp_path / "exported") == 0
    assert (tmp_path / "exported" / "street.png").read_bytes() == expected


def test_python_loads_a_url(run: Remote, tmp_path: Path) -> None:
    image = tmp_path / "street.png"
    expected = ppar_dist.load(tmp_path / "run", device="cpu").predict(image)
    for which in ("latest", "best"):
        assert np.array_equal(ppar_dist.load(run.url, device="cpu", which=which).predict(image), expected)
    with pytest.raises(ppar_dist.UserError, match="write s3://"):
        ppar_dist.load(Path(run.url))


def test_what_is_wrong_with_a_url_is_told_in_a_line(
    run: Remote, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step, out = run / "checkpoints" / checkpoint.checkpoint_name(STEP), tmp_path / "out"
    wrong = {
        f"{run.parent}/none": "holds no checkpoint of a run; check the bucket and the prefix",
        "s3://no-such-bucket/run": "holds no checkpoint of a run; check the bucket and the prefix",
        f"{run}/checkpoints/step-00000009": "is not a whole checkpoint",
        f"S4://{run.parent.name}/run": "a URL begins with s3://, gs://",
        f"s3:/{run.parent.name}/run": "a URL has two slashes after its scheme",
        f"s3://KEY:SECRET@{run.parent.name}/run": "a URL holds no user, password",
        f"{run}?X-Amz-Signature=SECRET": "a URL holds no user, password",
    }
    for url, message in wrong.items():
        assert command("predict", url, tmp_path / "street.png", "--out", out) == 78
        said = capsys.readouterr().err
        assert message in said
        assert "SECRET" not in said
    assert command("predict", step, tmp_path / "street.png", "--out", out, "--which", "best") == 78
    assert "chooses among the checkpoints of a run" in capsys.readouterr().err


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_told_at_once(bucket: Remote, storage_proxy: FaultProxy, status: int) -> None:
    storage_proxy.forget()
    with storage_proxy.rule(Error(status)):
        for ask in (lambda: STORAGE.read(bucket / "a"), lambda: STORAGE.entries(bucket)):
            with pytest.raises(StorageDenied, match="check AWS_ACCESS_KEY_ID"):
                ask()
    assert storage_proxy.count() == 2


def test_a_timeout_of_the_server_and_silence_are_asked_again(
    bucket: Remote, storage_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    STORAGE.write(bucket / "a", CONTENT)
    monkeypatch.setattr(remote, "_READ_S", 2.0)  # a busy machine answers the second time within it
    remote._forget_drivers()
    for fault in (Error(408, "RequestTimeout"), Error(408), Stall(8.0), Stall(8.0, at=100)):
        storage_proxy.forget()
        with storage_proxy.rule(fault, method="GET", times=1):
            assert STORAGE.read_range(bucket / "a", 5, 2000) == CONTENT[5:2000], fault
        assert storage_proxy.count("GET") == 2, fault


def test_tls_is_held_to_the_authorities_that_are_named(
    object_store: ObjectServer, bucket: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    STORAGE.write(bucket / "a", CONTENT)
    tls, authority = certificate(tmp_path)
    with fault_proxy(object_store.port, tls=tls) as secure:
        monkeypatch.setenv("AWS_ENDPOINT_URL", secure.endpoint)
        remote._forget_drivers()
        with pytest.raises(ppar_dist.UserError, match=r"not trusted.*AWS_CA_BUNDLE name the file of its CA"):
            Storage(60.0).read(bucket / "a")
        assert not secure.requests
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
        remote._forget_drivers()
        assert STORAGE.read(bucket / "a") == CONTENT
        STORAGE.write(bucket / "b", CONTENT)
        assert [each.name for each in STORAGE.entries(bucket)] == ["a", "b"]
        assert secure.count("PUT") == 1
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
        remote._forget_drivers()
        with pytest.raises(ppar_dist.UserError, match="aws-chunked is not supported"):
            Storage(60.0).write(bucket / "c", CONTENT)


def credentials(path: Path, key: str) -> None:
    """Replace the file, as whoever renews credentials does."""
    fresh = path.with_suffix(".fresh")
    fresh.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET_KEY}\n")
    fresh.replace(path)


def test_a_job_goes_on_with_credentials_that_were_renewed_in_their_file(
    store: s3fs.S3FileSystem,
    storage_proxy: FaultProxy,
    blocks: Path,
    tmp_path: Path,
    local: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The old key runs out at the second read of a shard, and the file has the next one a second later."""
    path = tmp_path / "credentials"
    credentials(path, ACCESS_KEY)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    config = job(blocks, tmp_path, "run")
    expired = storage_proxy.add(EXPIRED, method="GET", path="*.tar*", key=ACCESS_KEY, skip=1)
    renew = Do(lambda: credentials(path, NEXT_KEY if expired.taken > 2 else ACCESS_KEY))
    storage_proxy.add(renew, method="GET", path="*.tar*", key=ACCESS_KEY)
    run_ranks(["train", config], ranks=1)
    assert computed(tmp_path / "run") == local
    shards = [each for each in storage_proxy.requests if ".tar" in each.path]
    assert {each.key for each in shards} == {ACCESS_KEY, NEXT_KEY}
    assert expired.taken > 2
