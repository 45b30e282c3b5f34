"""Where data lies: a path of a file system, or the URL of an object or of a prefix of objects."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ppar_dist.errors import UserError
from ppar_dist.text import masked, printable

SCHEMES = ("s3", "gs", "https", "http")
WRITABLE = ("s3", "gs")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# Before the first slash: no user and password, of which the password may have a slash.
_BUCKET = re.compile(r"arn:[^@]*|[^:@]*")
_HOST = re.compile(r"(\[[^@]*\]|[^:@]*)(:[0-9]+)?")
_ANY_ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)  # of two letters: C: is a drive
_ONE_SLASH = re.compile(rf"({'|'.join(SCHEMES)}):/+(.*)", re.DOTALL | re.IGNORECASE)  # a path has one left


@dataclass(frozen=True)
class Remote:
    """An object, or what lies below a prefix, by its URL without a slash at the end.

    Joined with ``/`` as a ``Path`` is.
    """

    url: str

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def scheme(self) -> str:
        """``s3``, ``gs``, ``https`` or ``http``."""
        return self.url.partition("://")[0]

    @property
    def name(self) -> str:
        """What follows the last slash."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> Remote:
        """What comes before the last slash."""
        return Remote(self.url.rpartition("/")[0])


Location = Path | Remote


def location(value: str | Path | Remote) -> Location:
    """The location that a text means.

    Raises:
        UserError: a URL of a scheme that is not read, with one slash, without a bucket or host, or with
            credentials in it.
    """
    if isinstance(value, Remote):
        return value
    if url := _URL.fullmatch(str(value).strip()):
        return Remote(_checked(url[1].lower(), url[2]))
    if url := _ONE_SLASH.fullmatch(str(value).strip()):
        one, two = (_shown(f"{url[1].lower()}:{slashes}{url[2]}") for slashes in ("/", "//"))
        raise UserError(f"a URL has two slashes after its scheme, got {one}; write {two}, as text")
    return Path(value)


def refuse_url(path: Path) -> None:
    """Refuse a path that was a URL: it would be a folder that is called ``s3:``.

    Raises:
        UserError: it begins with a scheme.
    """
    if url := _ANY_ONE_SLASH.fullmatch(str(path)):
        shown = _shown(f"{url[1].lower()}://{url[2]}")
        raise UserError(f"a path of this machine is expected here, got {shown}; copy it, and give the path")


def _checked(scheme: str, rest: str) -> str:
    shown = _shown(f"{scheme}://{rest}")
    if scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise UserError(f"a URL begins with {known}, got {shown}; mount other storage and give a path")
    place, _, _ = rest.partition("/")
    if not (_BUCKET if scheme in WRITABLE else _HOST).fullmatch(place) or "?" in rest or "#" in rest:
        # Whoever may read config.yaml, logs and messages would have them.
        raise UserError(
            f"a URL holds no user, password, query or signature, got {shown}; give credentials where the "
            "driver looks for them: environment variables, ~/.aws, the machine's role"
        )
    parts = rest.rstrip("/").split("/")
    if not parts[0] or any(part in ("", ".", "..") for part in parts) or not rest.isprintable():
        raise UserError(
            f"a URL is scheme://bucket/prefix without empty parts and dots, got {shown}; correct it"
        )
    return f"{scheme}://{'/'.join(parts)}"


def _shown(url: str) -> str:
    """A URL for a message: without user, password, query and fragment."""
    return masked(printable(re.split("[?#]", url)[0]))
