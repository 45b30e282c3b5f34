"""What went wrong with a request to storage: whether it may go better the next time, and how it is said."""

from __future__ import annotations

import errno
import random
import ssl
import time
from collections.abc import Iterator

from ppar_dist.errors import UserError
from ppar_dist.text import one_line

# Errors that a request meets again however often it is sent.
_FOR_GOOD = (
    errno.EINVAL,
    errno.EPERM,
    errno.ENOSYS,
    errno.ENAMETOOLONG,
    errno.EMSGSIZE,
    errno.EEXIST,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
)
# Credentials that ran out are renewed by whoever gave them, and drivers read them again.
_RENEWED = (
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "TokenRefreshRequired",
    "RequestTimeTooSkewed",
)
_DENIED = (401, 403)
_NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "DefaultCredentialsError",
    "RefreshError",
)
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE")
_WORTH_A_RETRY = (408, 425, 429)  # and all from 500 on
_UNKNOWN = (501, 505)  # requests that the server does not know
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 10.0
_JITTER = random.Random()  # not the generator whose state a checkpoint holds


class StorageUnavailable(OSError):
    """Storage did not do what it was asked within the time a request is tried again: the job may resume."""


class StorageDenied(UserError):
    """Storage knows these credentials, or none, and refuses."""


class Incomplete(OSError):
    """Less came than was promised."""


def underlying(error: Exception) -> Exception:
    """What happened: fsspec's HTTP driver says of every failure to look at an object that it is missing."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and error.filename is None and isinstance(cause, Exception):
        return underlying(cause)
    return error


def is_distrusted(error: BaseException) -> bool:
    """Whether the server's certificate is not one that this machine trusts, or it does not speak TLS."""
    each: BaseException | None = error
    while each is not None:
        each = getattr(each, "certificate_error", each)  # aiohttp's
        if isinstance(each, ssl.SSLCertVerificationError):
            return True
        if isinstance(each, ssl.SSLError) and getattr(each, "reason", "") in _NO_TLS:
            return True
        each = each.__cause__ or each.__context__
    return False


def waits(patience_s: float) -> Iterator[float]:
    """Seconds to wait before each further attempt: doubled, with jitter, until ``patience_s`` have passed."""
    end, longest = time.monotonic() + patience_s, _FIRST_WAIT_S
    while (left := end - time.monotonic()) > 0:
        # Ranks that failed together must not come again together.
        yield min(longest * _JITTER.uniform(0.5, 1.0), left)
        longest = min(2 * longest, _LONGEST_WAIT_S)


def is_denied(error: BaseException) -> bool:
    """Whether the credentials, or their absence, are the reason."""
    if isinstance(error, PermissionError):
        return not is_expired(error) and error.filename is None  # a file of this machine has a name
    if str(error).startswith("Forbidden: ") and type(error) is OSError:  # gcsfs tells 403 by its text alone
        return True
    if type(error).__name__ in _NO_CREDENTIALS:
        return not getattr(error, "retryable", False)
    return _status(error) in _DENIED


def is_expired(error: BaseException) -> bool:
    """Whether credentials have run out, which are renewed while a job runs."""
    return _code(error) in _RENEWED


def is_missing(error: BaseException) -> bool:
    """Whether there is no such object or bucket."""
    return isinstance(error, FileNotFoundError) or _status(error) in (404, 410)


def is_beyond_the_end(error: BaseException) -> bool:
    """Whether a range begins where the object has ended."""
    return _status(error) == 416 or _code(error) in ("InvalidRange", "416")


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later: timeouts, resets, throttling, errors of the server."""
    if is_expired(error) or isinstance(error, (TimeoutError, ConnectionError)):
        return True
    status = _status(error)
    if status is not None:
        return status in _WORTH_A_RETRY or (status >= 500 and status not in _UNKNOWN)
    if isinstance(error, OSError):
        return error.errno not in _FOR_GOOD
    # Of drivers, which have classes of their own: connections that broke, answers that cannot be parsed.
    return type(error).__module__.partition(".")[0] in (
        "botocore",
        "aiobotocore",
        "aiohttp",
        "urllib3",
        "gcsfs",
        "google",
    )


def described(error: BaseException) -> str:
    """The error in one line, without credentials."""
    code = _code(error)
    text = one_line(error)
    return f"{code}: {text}" if code and code not in text else text


def _code(error: BaseException) -> str:
    """The code of S3's answer, as SlowDown; "" of other errors."""
    response = getattr(error.__cause__ or error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    return ""


def _status(error: BaseException) -> int | None:
    """The status of an HTTP answer, where the error is one."""
    response = getattr(error.__cause__ or error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return int(status) if status else None
    for name in ("status", "code"):  # aiohttp, gcsfs
        value = getattr(error, name, None)
        if isinstance(value, int):
            return value
    return None
