"""Requests to object storage through fsspec, tried again within a bound; the one door to it."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ppar_dist.errors import UserError
from ppar_dist.storage import progress
from ppar_dist.storage.failures import (
    Incomplete,
    StorageDenied,
    StorageUnavailable,
    described,
    is_beyond_the_end,
    is_denied,
    is_distrusted,
    is_expired,
    is_missing,
    may_pass,
    underlying,
    waits,
)
from ppar_dist.storage.location import Remote

PATIENCE_S = 120.0
_CONNECT_S, _READ_S = 10.0, 30.0  # without a byte, of one attempt
_EXTRAS = {"s3": "s3", "gs": "gcs", "https": "http", "http": "http"}
_REMEDIES = {
    "s3": "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, ~/.aws, and the bucket's policy",
    "gs": "check GOOGLE_APPLICATION_CREDENTIALS or the machine's account, and the bucket's policy",
}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_VERSIONS = ("ETag", "etag", "generation", "Last-Modified")  # the last of plain web servers
_CHECKSUMS = "AWS_REQUEST_CHECKSUM_CALCULATION"
# Variables that name more certificates to trust; each driver reads its own.
_TRUSTED = {"s3": "AWS_CA_BUNDLE", "gs": "SSL_CERT_FILE", "https": "SSL_CERT_FILE", "http": "SSL_CERT_FILE"}

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class Facts(NamedTuple):
    """An object as storage describes it."""

    bytes: int
    version: str  # its ETag, generation or time; "" where storage tells none


class Entry(NamedTuple):
    """What lies directly below a prefix."""

    name: str
    bytes: int
    version: str
    is_folder: bool


@dataclass(frozen=True)
class Storage:
    """Requests to storage, each tried again until it succeeds, cannot succeed, or ``patience_s`` have passed.

    Every method raises FileNotFoundError where there is no such object, StorageDenied where credentials are
    refused, StorageUnavailable where patience has run out, and UserError where the driver is not installed.
    """

    patience_s: float = PATIENCE_S
    is_data: bool = False  # a phase that waits for it makes progress while requests end (``progress``)

    def facts(self, place: Remote) -> Facts:
        """Size and version of an object."""
        found = self._ask(f"look at {place}", lambda: _reading(place).info(place.url))
        if found.get("type") == "directory":
            raise FileNotFoundError(f"{place} is not an object")
        return _facts(found)

    def read_range(self, place: Remote, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of an object; fewer where it ends before."""

        def attempt() -> bytes:
            raw: bytes = _reading(place).cat_file(place.url, start=start, end=stop)
            if len(raw) > stop - start:
                raise UserError(
                    f"{place} lies on a server that gives no ranges of a file; use another server"
                )
            if len(raw) < stop - start and _reading(place).info(place.url)["size"] >= stop:
                raise Incomplete(f"{len(raw)} of {stop - start} bytes came")
            return raw

        try:
            return self._ask(f"read {place}", attempt)
        except _BeyondTheEnd:
            return b""

    def read(self, place: Remote) -> bytes:
        """A whole object."""

        def attempt() -> bytes:
            raw: bytes = _reading(place).cat_file(place.url)
            return raw

        return self._ask(f"read {place}", attempt)

    def download(self, place: Remote, path: Path) -> None:
        """Copy an object into a file, which is not synced and may be left half-written by a failure."""

        def attempt() -> None:
            expected = _reading(place).info(place.url).get("size")
            with _of_this_machine(path):
                _reading(place).get_file(place.url, str(path), **self._signs())
            if expected is not None and path.stat().st_size != expected:
                raise Incomplete(f"{path.stat().st_size} of {expected} bytes came")

        self._ask(f"read {place}", attempt)

    def upload(self, path: Path, place: Remote) -> None:
        """Copy a file into an object, which appears whole: a large one in parts, joined at the end."""
        self._send(place, lambda: _writing(place).put_file(str(path), place.url))

    def write(self, place: Remote, content: bytes) -> None:
        """Write an object, which appears, or is replaced, whole."""
        self._send(place, lambda: _writing(place).pipe_file(place.url, content))

    def _send(self, place: Remote, request: Callable[[], object]) -> None:
        try:
            self._ask(f"write {place}", request)
        except FileNotFoundError as error:
            if error.filename is not None:
                raise
            raise UserError(
                f"cannot write {place}: there is no such bucket; create it, or correct the URL"
            ) from None

    def entries(self, folder: Remote) -> list[Entry]:
        """What lies directly below a prefix, by name; empty where nothing does."""

        def attempt() -> list[dict[str, Any]]:
            listed: list[dict[str, Any]] = _reading(folder).ls(folder.url, detail=True, refresh=True)
            return listed

        try:
            listed = self._ask(f"list {folder}", attempt)
        except FileNotFoundError:
            return []
        own = (folder.url, folder.url.partition("://")[2])
        found = [(each["name"].rstrip("/"), each) for each in listed]
        entries = [
            Entry(path.rpartition("/")[2], *_facts(each), each.get("type") == "directory")
            for path, each in found
            if path not in own
        ]
        return sorted(entries)

    def remove(self, place: Remote) -> None:
        """Remove an object; that it is gone already is not a failure."""
        with contextlib.suppress(FileNotFoundError):
            self._ask(f"remove {place}", lambda: _writing(place).rm_file(place.url))

    def abort_uploads(self, folder: Remote) -> int:
        """Abort the unfinished uploads in parts below a prefix: what was sent is stored, and unseen.

        Returns:
            How many were aborted; of more than 1000 a part. On ``gs://`` 0: there they expire by themselves.
        """
        if folder.scheme != "s3":
            return 0
        bucket, _, prefix = folder.url.removeprefix("s3://").partition("/")

        def attempt() -> int:
            driver = _writing(folder)
            found = driver.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/")
            uploads = [each for each in found.get("Uploads", []) if each["Key"].startswith(f"{prefix}/")]
            for each in uploads:
                with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
                    names = {"Key": each["Key"], "UploadId": each["UploadId"]}
                    driver.call_s3("abort_multipart_upload", Bucket=bucket, **names)
            return len(uploads)

        return self._ask(f"list and abort uploads below {folder}", attempt)

    def _signs(self) -> dict[str, Any]:
        """Arguments with which a driver gives a sign of life whenever a part of a file has come."""
        if not self.is_data:
            return {}
        from fsspec.callbacks import Callback

        class PartCame(Callback):  # type: ignore[misc]
            def relative_update(self, inc: int = 1) -> None:
                progress.attempt_ended()

        return {"callback": PartCame()}

    def _note_end(self) -> None:
        if self.is_data:  # requests for checkpoints say nothing of a loader that hangs
            progress.attempt_ended()

    def _ask(self, what: str, request: Callable[[], Answer]) -> Answer:
        began, pauses, tries = time.monotonic(), waits(self.patience_s), 0
        while True:
            tries += 1
            try:
                answer = request()
            except Exception as raised:
                self._note_end()
                error = underlying(raised)
                _refuse(what, error)
                if is_expired(error):  # a driver keeps the credentials that it began with
                    _forget_drivers()
                pause = next(pauses, None)
                if pause is None:
                    raise StorageUnavailable(
                        f"cannot {what} in {time.monotonic() - began:.0f} s and {tries} attempts "
                        f"({described(error)}); run the same command again when storage answers"
                    ) from None
                if tries == 1:
                    log.warning(
                        "cannot %s (%s): tried again for %g s", what, described(error), self.patience_s
                    )
                time.sleep(pause)
            else:
                self._note_end()
                if tries > 1:
                    log.warning(
                        "%s: succeeded at attempt %d, after %.1f s", what, tries, time.monotonic() - began
                    )
                return answer


def _facts(found: dict[str, Any]) -> Facts:
    """Size and version in a driver's description of an object."""
    version = next((str(found[key]) for key in _VERSIONS if found.get(key)), "")
    return Facts(int(found.get("size") or 0), version.strip('"'))


class _BeyondTheEnd(OSError):
    """A range begins where the object has ended."""


def _refuse(what: str, error: Exception) -> None:
    """Raise what no further attempt can cure."""
    if isinstance(error, UserError) or (isinstance(error, OSError) and error.filename is not None):
        raise error  # of a file of this machine
    if is_missing(error):
        raise FileNotFoundError(f"cannot {what}: there is no such object or bucket") from None
    if is_beyond_the_end(error):
        raise _BeyondTheEnd(what) from None
    if is_denied(error):
        remedy = _REMEDIES.get(_scheme_in(what), "check the server's permissions")
        raise StorageDenied(f"storage refuses to {what} ({described(error)}); {remedy}") from None
    if is_distrusted(error):
        raise UserError(
            f"cannot {what}: its certificate is not trusted, or it speaks no TLS ({described(error)}); let "
            f"{_TRUSTED[_scheme_in(what)]} name the file of its CA's certificate, or correct the URL"
        ) from None
    if not may_pass(error):
        raise UserError(f"cannot {what}: {described(error)}; check the URL, its region and bucket") from None


@contextlib.contextmanager
def _of_this_machine(path: Path) -> Iterator[None]:
    """A disk that is full is not a fault of storage: its error names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def _scheme_in(what: str) -> str:
    return what.partition("://")[0].rpartition(" ")[2]


def _reading(place: Remote) -> Any:
    """The driver, as for short requests: each attempt is one request, and ``Storage`` repeats it."""
    return _driver(os.getpid(), _EXTRAS[place.scheme], 1)


def _writing(place: Remote) -> Any:
    """The driver, as for long files: a part that fails is sent again, and not the whole file."""
    return _driver(os.getpid(), _EXTRAS[place.scheme], 5)


_LOCK = threading.Lock()


def _renew_lock() -> None:
    """A thread of the parent may have held it when this process was forked."""
    global _LOCK
    _LOCK = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def _forget_drivers() -> None:
    """Have the next request read the credentials again."""
    with _LOCK:
        _new_driver.cache_clear()


def _driver(pid: int, extra: str, tries: int) -> Any:
    with _LOCK:
        return _new_driver(pid, extra, tries)


@functools.lru_cache(maxsize=8)
def _new_driver(pid: int, extra: str, tries: int) -> Any:
    """A driver of this process: connections do not outlive a fork. ``pid`` tells processes apart."""
    import fsspec

    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    try:
        if extra == "s3":
            config: dict[str, Any] = {
                "connect_timeout": _CONNECT_S,
                "read_timeout": _READ_S,
                "retries": {"total_max_attempts": 1},
            }
            if _CHECKSUMS not in os.environ:
                # Over TLS the usual checksums come behind the body, which many stores but AWS's do not know.
                config["request_checksum_calculation"] = "when_required"
            driver = fsspec.filesystem("s3", config_kwargs=config, **options)
            driver.retries = tries
        elif extra == "gcs":
            # Not the class that fsspec knows: it asks over gRPC as well, which does not outlive a fork.
            from gcsfs.core import GCSFileSystem

            logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # tracebacks of what is asked again
            driver = GCSFileSystem(requests_timeout=_timeout(), **options)
        else:
            driver = fsspec.filesystem("http", client_kwargs={"timeout": _timeout()}, **options)
    except ImportError:
        raise UserError(
            f"{extra} storage needs a driver that is not installed; pip install 'ppar-dist[{extra}]'"
        ) from None
    return driver


def _timeout() -> Any:
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_READ_S)
