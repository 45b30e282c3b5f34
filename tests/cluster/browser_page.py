"""A page in a real browser: its text after its scripts have run, and its appearance."""

from __future__ import annotations

import re
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

# A browser that only does what it is told: nothing is loaded but the page.
_CHROMIUM = (
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
_SCRIPT_MS = 20_000  # of the page's own time, which runs faster than the clock while nothing is awaited
_TIMEOUT_S = 180


def dump(url: str, width: int = 1920, height: int = 1080) -> str:
    """The document after its scripts have run, as HTML."""
    return _run(url, "--dump-dom", f"--window-size={width},{height}")


def screenshot(url: str, path: Path, width: int = 1920, height: int = 1080) -> None:
    """Save a picture of the page as PNG."""
    _run(url, f"--screenshot={path}", f"--window-size={width},{height}")
    assert path.is_file(), f"no picture of {url}"


def said(html: str) -> str:
    """The text of a document, without styles and scripts."""
    return _Text(html).text


def _run(url: str, *options: str) -> str:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        done = subprocess.run(
            [*_CHROMIUM, f"--user-data-dir={profile}", f"--virtual-time-budget={_SCRIPT_MS}", *options, url],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


class _Text(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self._hidden = 0
        self._parts: list[str] = []
        self.feed(html)

    @property
    def text(self) -> str:
        """Words with single spaces."""
        return re.sub(r"\s+", " ", " ".join(self._parts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._parts.append(data)
