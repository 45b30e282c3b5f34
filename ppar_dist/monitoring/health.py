"""``ppar-dist health``: asks ranks whether they advance, for container health checks and probes.

Those run every few seconds beside the training, so this imports nothing but the standard library.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn
from urllib.parse import urlsplit

from ppar_dist import exit_codes
from ppar_dist.text import printable

UNHEALTHY = 1  # what Docker and Kubernetes expect
DEFAULT_PORT, _PORT_VARIABLE = 18400, "PPAR_METRICS_PORT"
_LONGEST_S = 3600  # to wait for an answer
_ANSWER = 1 << 16  # bytes, more than any answer of ours


def check(url: str, timeout_s: float = 5.0) -> tuple[bool, str]:
    """Whether the rank that serves ``url`` says that it advances, and what it says, in one line.

    Args:
        url: of its endpoint, ``http://host:port``; what follows does not matter.
        timeout_s: for which an answer is waited for.

    Raises:
        ValueError: ``url`` is not one.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"a URL is http://HOST:PORT, got {url!r}")
    connection = http.client.HTTPConnection(parts.hostname, parts.port or DEFAULT_PORT, timeout=timeout_s)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        said = json.loads(answer.read(_ANSWER))
        return answer.status == http.HTTPStatus.OK, _line(said)
    except (OSError, http.client.HTTPException) as error:
        return False, f"{parts.netloc} does not answer: {error or type(error).__name__}"
    except (ValueError, KeyError, TypeError):
        return False, f"{parts.netloc} is not an endpoint of ppar_dist"
    finally:
        connection.close()


def main(arguments: Sequence[str]) -> int:
    """Ask each rank; 0 if all advance, 1 if one does not, 78 if a URL or the port cannot be one."""
    parser = _Parser(prog="ppar-dist health", description="Ask the ranks here whether they advance.")
    parser.add_argument(
        "urls",
        nargs="*",
        metavar="URL",
        help=f"http://127.0.0.1:PORT, with ${_PORT_VARIABLE} or {DEFAULT_PORT}",
    )
    parser.add_argument("--nproc", type=int, default=1, help="ranks here, at the ports from PORT on")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S", help="seconds for an answer")
    options = parser.parse_args(arguments)
    try:
        if options.nproc < 1:
            raise ValueError(f"--nproc is at least 1, got {options.nproc}")
        if not 0 < options.timeout <= _LONGEST_S:
            raise ValueError(f"--timeout is more than 0 and at most {_LONGEST_S} s, got {options.timeout}")
        found = [check(url, options.timeout) for url in options.urls or _default_urls(options.nproc)]
    except ValueError as error:
        print(f"ppar-dist: {error}", file=sys.stderr)
        return exit_codes.CONFIG
    for ok, text in found:
        print(printable(text), file=sys.stdout if ok else sys.stderr)
    return exit_codes.DONE if all(ok for ok, _ in found) else UNHEALTHY


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(exit_codes.CONFIG, f"ppar-dist: {message}; see {self.prog} --help\n")


def _default_urls(ranks: int) -> list[str]:
    text = os.environ.get(_PORT_VARIABLE) or str(DEFAULT_PORT)
    if not text.isdigit() or not 0 < int(text) <= 65536 - ranks:
        raise ValueError(f"{_PORT_VARIABLE} is the port of a rank, got {text!r}")
    return [f"http://127.0.0.1:{int(text) + rank}" for rank in range(ranks)]


def _line(said: Any) -> str:
    phase = said["phase"] if said["phase"] != "off" else "no phase"
    return f"rank {said['rank']} {said['status']}: step {said['step']}, {said['seconds']:.1f} s in {phase}"
