"""The object server does what S3 does; each fault of the proxy reaches a plain client as what it claims."""

from __future__ import annotations

import http.client
import os
import subprocess
import threading
import time
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import botocore.session
import pytest
import s3fs
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.cluster.fault_proxy import FaultProxy
from tests.cluster.object_server import ACCESS_KEY, REGION, SECRET_KEY, ObjectServer
from tests.cluster.storage_faults import (
    EXPIRED,
    SLOW_DOWN,
    Cut,
    Do,
    Error,
    Flip,
    Latency,
    Reset,
    Stall,
    kill,
)

BUCKET = "harness"
DATA = bytes(range(256)) * 1024
PART = 5 << 20


def client(endpoint: str, secret: str = SECRET_KEY) -> Any:
    """botocore's own, which tries once."""
    config = Config(signature_version="s3v4", retries={"total_max_attempts": 1, "mode": "standard"})
    keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": secret}
    return session().create_client("s3", REGION, endpoint_url=endpoint, config=config, **keys)


@cache
def session() -> botocore.session.Session:
    """It keeps what it has read about the service."""
    return botocore.session.get_session()


class Plain:
    """A client without any cleverness: one connection for each request, with its URL signed beforehand."""

    def __init__(self, endpoint: str) -> None:
        self._client = client(endpoint)

    def ask(
        self, method: str, key: str, body: bytes = b"", timeout: float = 10.0, **headers: str
    ) -> http.client.HTTPResponse:
        """The answer, whose body is still to be read."""
        operation = {"GET": "get_object", "PUT": "put_object", "HEAD": "head_object"}[method]
        signed = self._client.generate_presigned_url(operation, Params={"Bucket": BUCKET, "Key": key})
        url = urlsplit(signed)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=timeout)
        connection.request(method, f"{url.path}?{url.query}", body or None, headers)
        return connection.getresponse()


@pytest.fixture(scope="module")
def direct(object_store: ObjectServer) -> Any:
    """To the server itself, with one object."""
    made = client(object_store.endpoint)
    made.create_bucket(Bucket=BUCKET)
    made.put_object(Bucket=BUCKET, Key="data", Body=DATA)
    return made


@pytest.fixture
def proxy(storage_proxy: FaultProxy, direct: Any) -> FaultProxy:
    return storage_proxy


@pytest.fixture
def plain(proxy: FaultProxy) -> Plain:
    return Plain(proxy.endpoint)


@pytest.fixture
def files(
    object_store: ObjectServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> s3fs.S3FileSystem:
    """s3fs, which finds the proxy by the environment alone."""
    for name, value in object_store.environment(proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)


def exists(direct: Any, key: str) -> bool:
    """Asked of a listing, as a new process would."""
    found = direct.list_objects_v2(Bucket=BUCKET, Prefix=key).get("Contents", [])
    return key in [one["Key"] for one in found]


def test_whole_life_of_objects(files: s3fs.S3FileSystem) -> None:
    files.mkdir("life")
    assert "life" in files.ls("")
    files.pipe_file("life/a/one", DATA)
    assert files.cat_file("life/a/one") == DATA
    assert files.cat_file("life/a/one", start=1000, end=1010) == DATA[1000:1010]
    assert files.cat_ranges(["life/a/one"] * 2, [0, 70000], [3, 70003]) == [DATA[:3], DATA[70000:70003]]
    files.pipe_file("life/a/one", b"other")
    assert files.cat_file("life/a/one") == b"other"
    files.cp_file("life/a/one", "life/b")
    assert files.find("life") == ["life/a/one", "life/b"]
    assert [entry["size"] for entry in files.ls("life", detail=True)] == [0, 5]
    for name in files.find("life"):
        files.rm_file(name)
    assert files.find("life") == []
    files.rmdir("life")
    with pytest.raises(FileNotFoundError):
        files.cat_file("life/b")


def test_upload_in_parts(files: s3fs.S3FileSystem, proxy: FaultProxy, direct: Any) -> None:
    whole = os.urandom(2 * PART) + b"end"
    with files.open(f"{BUCKET}/parts", "wb", block_size=PART) as file:
        for start in range(0, len(whole), PART):
            file.write(whole[start : start + PART])
        assert not exists(direct, "parts")
    assert files.info(f"{BUCKET}/parts")["ETag"].endswith('-3"')
    assert files.cat_file(f"{BUCKET}/parts") == whole
    assert files.cat_file(f"{BUCKET}/parts", start=PART - 2, end=PART + 2) == whole[PART - 2 : PART + 2]
    uploads = [one for one in proxy.requests if "partNumber" in one.query]
    assert sum(one.received for one in uploads) == len(whole)


def test_conditions_and_keys(direct: Any, object_store: ObjectServer) -> None:
    tag = direct.head_object(Bucket=BUCKET, Key="data")["ETag"]
    answer = direct.get_object(Bucket=BUCKET, Key="data", IfMatch=tag, Range="bytes=5-9")
    assert answer["Body"].read() == DATA[5:10]
    assert code(lambda: direct.get_object(Bucket=BUCKET, Key="data", IfMatch='"0"')) == "PreconditionFailed"
    stranger = client(object_store.endpoint, "wrong")
    assert code(lambda: stranger.get_object(Bucket=BUCKET, Key="data")) == "SignatureDoesNotMatch"
    assert code(lambda: direct.get_object(Bucket=BUCKET, Key="none")) == "NoSuchKey"


def code(call: Any) -> str:
    """Of the error that the server answers with."""
    with pytest.raises(ClientError) as caught:
        call()
    return str(caught.value.response["Error"]["Code"])


def test_an_error_to_head_leaves_the_connection_in_order(direct: Any, object_store: ObjectServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", object_store.port, timeout=10)
    for _ in range(2):
        connection.request("HEAD", f"/{BUCKET}/data")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (400, b"")  # it is not signed
    assert answer.getheader("transfer-encoding") is None


def test_a_server_comes_back_with_its_objects(object_store: ObjectServer, direct: Any) -> None:
    object_store.stop()
    try:
        with pytest.raises(ConnectionRefusedError):
            Plain(object_store.endpoint).ask("GET", "data")
    finally:
        object_store.start()
    assert Plain(object_store.endpoint).ask("GET", "data").read() == DATA


def test_requests_are_counted(proxy: FaultProxy, plain: Plain) -> None:
    assert plain.ask("PUT", "a b", b"12345").status == 200
    assert plain.ask("GET", "data", Range="bytes=10-19").read() == DATA[10:20]
    assert plain.ask("GET", "none").status == 404
    told = [(one.method, one.path, one.range, one.received, one.status) for one in proxy.requests]
    assert told == [
        ("PUT", f"/{BUCKET}/a b", "", 5, 200),
        ("GET", f"/{BUCKET}/data", "bytes=10-19", 0, 206),
        ("GET", f"/{BUCKET}/none", "", 0, 404),
    ]
    assert proxy.requests[1].sent == 10
    assert (proxy.count(), proxy.count("GET"), proxy.count("GET", "*/none")) == (3, 2, 1)


@pytest.mark.parametrize(
    "error", [SLOW_DOWN, Error(500, "InternalError"), EXPIRED, Error(403, "ExpiredToken")]
)
def test_errors_of_s3(proxy: FaultProxy, plain: Plain, direct: Any, error: Error) -> None:
    with proxy.rule(error):
        answer = plain.ask("PUT", "refused", b"1")
        assert (answer.status, ElementTree.fromstring(answer.read()).findtext("Code")) == (
            error.status,
            error.code,
        )
        answer = plain.ask("HEAD", "data")
        assert (answer.status, answer.read()) == (error.status, b"")
        assert code(lambda: client(proxy.endpoint).get_object(Bucket=BUCKET, Key="data")) == error.code
    assert not exists(direct, "refused")
    assert plain.ask("PUT", "refused", b"1").status == 200
    direct.delete_object(Bucket=BUCKET, Key="refused")


def test_an_error_of_a_gateway(proxy: FaultProxy, plain: Plain) -> None:
    with proxy.rule(Error(502), path="*/data"):
        answer = plain.ask("GET", "data")
        assert (answer.status, answer.getheader("content-type")) == (502, "text/html")
        assert plain.ask("GET", "none").status == 404


def test_reset_before_and_after_the_server_has_acted(proxy: FaultProxy, plain: Plain, direct: Any) -> None:
    for at, done in ((None, False), (0, True)):
        with proxy.rule(Reset(at), method="PUT"), pytest.raises(ConnectionResetError):
            plain.ask("PUT", f"reset-{at}", b"1")
        assert exists(direct, f"reset-{at}") == done
    assert [one.status for one in proxy.requests] == [0, 0]


def test_reset_within_a_body(proxy: FaultProxy, plain: Plain) -> None:
    with proxy.rule(Reset(at=1000)):
        answer = plain.ask("GET", "data")
        assert answer.read(1000) == DATA[:1000]
        with pytest.raises(ConnectionResetError):
            answer.read(1)


def test_body_cut_short(proxy: FaultProxy, plain: Plain) -> None:
    with proxy.rule(Cut(at=1000)):
        answer = plain.ask("GET", "data")
        assert answer.getheader("content-length") == str(len(DATA))
        with pytest.raises(http.client.IncompleteRead) as caught:
            answer.read()
    assert (caught.value.partial, caught.value.expected) == (DATA[:1000], len(DATA) - 1000)


def test_stalled_body_and_stalled_answer(proxy: FaultProxy, plain: Plain) -> None:
    with proxy.rule(Stall(1.0, at=1000)):
        answer = plain.ask("GET", "data", timeout=0.4)
        assert answer.read(1000) == DATA[:1000]
        with pytest.raises(TimeoutError):
            answer.read(1)
        began = time.monotonic()
        assert plain.ask("GET", "data").read() == DATA
        assert time.monotonic() - began >= 1.0
    with proxy.rule(Stall(1.0)), pytest.raises(TimeoutError):
        plain.ask("GET", "data", timeout=0.4)


def test_damage_on_the_way(proxy: FaultProxy, plain: Plain) -> None:
    with proxy.rule(Flip(at=7)):
        answer = plain.ask("GET", "data")
        tag, got = answer.getheader("etag"), answer.read()
    assert (got[:7], got[7], got[8:]) == (DATA[:7], DATA[7] ^ 0xFF, DATA[8:])
    answer = plain.ask("GET", "data")
    assert (answer.getheader("etag"), answer.read()) == (tag, DATA)


def test_object_changed_between_two_reads(proxy: FaultProxy, files: s3fs.S3FileSystem, direct: Any) -> None:
    """The file that s3fs has opened is never a mixture of two objects."""
    direct.put_object(Bucket=BUCKET, Key="changed", Body=b"a" * (2 * PART))
    change = Do(lambda: direct.put_object(Bucket=BUCKET, Key="changed", Body=b"b" * (2 * PART)))
    proxy.add(change, method="GET", path="*/changed", skip=1, times=1)
    with files.open(f"{BUCKET}/changed", "rb", block_size=1 << 20, cache_type="bytes") as file:
        assert file.read(4) == b"aaaa"
        file.seek(PART)
        with pytest.raises(OSError, match="preconditions") as caught:
            file.read(4)
    assert isinstance(caught.value.__cause__, ClientError)
    assert files.cat_file(f"{BUCKET}/changed", start=0, end=4) == b"bbbb"


def test_rules_select(proxy: FaultProxy, plain: Plain, direct: Any) -> None:
    rule = proxy.add(SLOW_DOWN, method="GET", path=f"/{BUCKET}/d*", skip=1, every=2, times=2)
    assert [plain.ask("GET", "data").status for _ in range(9)] == [200, 200, 503] + [200, 503] + [200] * 4
    assert (rule.seen, rule.taken) == (9, 2)
    assert plain.ask("HEAD", "data").status == plain.ask("PUT", "d", b"1").status == 200
    proxy.remove(rule)
    with proxy.rule(SLOW_DOWN, path="*list-type=2*"):
        assert code(lambda: client(proxy.endpoint).list_objects_v2(Bucket=BUCKET)) == "SlowDown"
        assert plain.ask("GET", "data").status == 200
    assert [one.faults for one in proxy.requests if one.status == 503] == [["Error"]] * 3


def test_latency_and_shared_bandwidth(proxy: FaultProxy, plain: Plain) -> None:
    with proxy.rule(Latency(0.3, 0.4)):
        began = time.monotonic()
        assert plain.ask("GET", "data").read() == DATA
        assert time.monotonic() - began >= 0.3
    proxy.bandwidth = 2 * len(DATA)
    readers = [threading.Thread(target=lambda: plain.ask("GET", "data").read()) for _ in range(3)]
    began = time.monotonic()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert time.monotonic() - began >= 1.4
    while proxy.requests[-1].sent < len(DATA) and time.monotonic() - began < 20:
        time.sleep(0.01)  # a client may have the last bytes before the proxy counts them
    assert proxy.requests[-1].sent == len(DATA)


def test_connections_refused(proxy: FaultProxy, plain: Plain) -> None:
    for _ in range(2):
        with proxy.refusing(), pytest.raises(ConnectionRefusedError):
            plain.ask("GET", "data")
        assert plain.ask("GET", "data").read() == DATA


@pytest.mark.parametrize("forwarded", [False, True])
def test_process_killed_at_a_request(proxy: FaultProxy, plain: Plain, direct: Any, forwarded: bool) -> None:
    victim = subprocess.Popen(["sleep", "60"])
    proxy.add(kill(victim.pid, forwarded), method="PUT", skip=1, times=1)
    plain.ask("PUT", "first", b"1")
    assert victim.poll() is None
    listing = Do(lambda: seen.append(exists(direct, f"second-{forwarded}")), forwarded)
    seen: list[bool] = []
    proxy.add(listing, method="PUT")
    plain.ask("PUT", f"second-{forwarded}", b"1")
    assert victim.wait(10) == -9
    assert seen == [forwarded]
