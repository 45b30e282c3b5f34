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
        UserError: a URL of a scheme that is not read, without a bucket or host, or with credentials in it.
    """
    if not isinstance(value, str):
        return value
    url = _URL.fullmatch(value.strip())
    return Path(value) if url is None else Remote(_checked(url[1].lower(), url[2]))


def _checked(scheme: str, rest: str) -> str:
    shown = masked(printable(f"{scheme}://{re.split('[?#]', rest)[0]}"))
    if scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise UserError(f"a URL begins with {known}, got {shown}; mount other storage and give a path")
    place, _, _ = rest.partition("/")
    if "@" in place or "?" in rest or "#" in rest:
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
