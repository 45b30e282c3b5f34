"""Progress of a command on standard error: lines that are overwritten on a terminal."""

from __future__ import annotations

import sys


def count_images(domain: str, done: int, total: int) -> None:
    """How many images of a domain are done; off a terminal only the last line is printed."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{domain}: {done}/{total}", end=end, file=sys.stderr, flush=True)
    elif done == total:
        print(f"{domain}: {total} images", file=sys.stderr)


def show_progress(what: str, done: int, total: int) -> None:
    """How far something is, on a terminal only; the line is cleared at the end."""
    if sys.stderr.isatty():
        text = "" if done == total else f"{what}: {done}/{total}"
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
