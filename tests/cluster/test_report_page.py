"""report.html in a real browser: light, dark, on paper; nothing is fetched, nothing in it runs."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppar_dist.evaluation.evaluate import evaluate
from ppar_dist.report import write_report
from tests.cluster.programs import needs
from tests.unit.report.test_report import log_run
from tests.unit.tiny_run import make_domain, make_run

_NASTY = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-features=NetworkTimeServiceQuerying", "--enable-logging=stderr"),
)
_BROWSERS_OWN = (".google.com", ".googleapis.com", ".gvt1.com")  # hosts it asks whatever it shows
_DARK = ["--blink-settings=preferredColorScheme=0"]
_LIMIT_S = 180


@dataclass
class Site:
    """A server that every host name leads to, and what was asked of it."""

    page: Path
    port: int
    asked: list[str]

    def open(self, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
        """Look at the page with a browser that has never been used."""
        profile = f"--user-data-dir={folder / 'profile'}"
        rules = f"--host-resolver-rules=MAP * 127.0.0.1:{self.port}"
        command = ["chromium", *_OPTIONS, profile, rules, "--virtual-time-budget=3000", *options]
        command.append("http://ppar.example/report.html")
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        assert done.returncode == 0, done.stderr
        assert "CONSOLE" not in done.stderr, done.stderr
        return done


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The report of a run whose events and samples bear hostile names."""
    needs("chromium")
    root = tmp_path_factory.mktemp("page")
    make_run(root / "shards", root / "run")
    make_domain(root / "shards" / "night", 3, 9)
    log_run(root / "run")
    results = evaluate(
        root / "run", {"night": root / "shards" / "night"}, examples=root / "run" / "predictions"
    )
    results.write(root / "run" / "results.json")
    metrics = root / "run" / "metrics"
    event = {"time": 1e9, "kind": _NASTY, "step": 20, "text": _NASTY}
    (metrics / "events.jsonl").write_text(json.dumps(event) + "\n")
    row = {"domain": _NASTY, "sample": 1, "key": _NASTY, "weight": 1.0, "reliability": -1.0}
    with (metrics / "samples.jsonl").open("a") as file:
        file.write(json.dumps({"step": 41, "samples": [row]}) + "\n")
    page, asked = write_report(root / "run"), []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.headers['Host']}{self.path}")
            self.send_response(200 if self.path == "/report.html" else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page.read_bytes() if self.path == "/report.html" else b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Site(page, server.server_port, asked)
    server.shutdown()
    server.server_close()


def test_nothing_is_fetched_and_nothing_runs(site: Site, tmp_path: Path) -> None:
    document = site.open(tmp_path, "--dump-dom").stdout
    fetched = {url for url in site.asked if not url.partition("/")[0].endswith(_BROWSERS_OWN)}
    assert "ppar.example/report.html" in fetched
    assert fetched <= {"ppar.example/report.html", "ppar.example/favicon.ico"}
    assert re.search(r"<title>tiny · ppar_dist run report</title>", document)
    assert "&lt;script&gt;document.title" in document
    assert not re.search(
        r"<script|<img src=\"?x|onerror=\S* ?[^&]*<", document.split("<main>")[1].split("&lt;")[0]
    )
    assert document.count("<svg") >= 10


@pytest.mark.parametrize(("options", "low", "high"), [([], 190, 255), (_DARK, 0, 80)], ids=["light", "dark"])
def test_it_follows_the_colour_scheme(
    site: Site, tmp_path: Path, options: list[str], low: int, high: int
) -> None:
    shot = tmp_path / "page.png"
    site.open(tmp_path, *options, "--window-size=1160,1400", f"--screenshot={shot}")
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert low <= np.median(pixels) <= high
    assert pixels[:120].std() > 10  # the title can be told from the ground


def test_it_fits_a_narrow_window(site: Site, tmp_path: Path) -> None:
    """Tables and wide charts scroll in themselves; the page does not: its right margin stays empty."""
    shot = tmp_path / "page.png"
    site.open(tmp_path, "--window-size=500,5000", f"--screenshot={shot}")
    with Image.open(shot) as picture:
        margin = np.asarray(picture.convert("L"))[:, -12:]
    assert int(margin.max()) - int(margin.min()) <= 2


def test_it_prints(site: Site, tmp_path: Path) -> None:
    paper = tmp_path / "page.pdf"
    site.open(tmp_path, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    pages = len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes()))
    assert 3 <= pages <= 15
