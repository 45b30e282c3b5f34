"""The console page of a whole run, as a picture: a real Prometheus watches a real run of configs/demo.yaml.

    python -m benchmarks.console --out docs/console.png

Needs Debian's prometheus and chromium (tests/cluster/install.sh). Prometheus scrapes every second; everything
else is the configuration of jobs/prometheus. On 2 CPU cores the run takes some minutes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.arguments import described
from ppar_dist.cli.demo import demo
from tests.cluster.browser_page import screenshot
from tests.cluster.prometheus_server import Prometheus, prometheus

_CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, wait until Prometheus has dropped the run, take the pictures."""
    parser = described(__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/console.png"))
    parser.add_argument("--dark", type=Path, help="a second picture, of the dark page")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch, prometheus(Path(scratch) / "configuration") as server:
        _train(server, Path(scratch), options.steps)
        page = f"{server.url}/consoles/ppar.html?run=demo&refresh=0"
        screenshot(f"{page}&theme=light", options.out)
        if options.dark is not None:
            screenshot(f"{page}&theme=dark", options.dark)


def _train(server: Prometheus, scratch: Path, steps: int) -> None:
    settings: dict[str, Any] = yaml.safe_load(_CONFIG.read_text(encoding="utf-8"))
    settings["train"] |= {"steps": steps, "log_every": 2, "eval_every": steps // 10}
    settings["checkpoint"] |= {"every": steps // 8}
    settings["monitoring"] |= {"targets_file": str(server.targets / "demo.json")}
    config = scratch / "demo.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    code = demo(scratch / "demo", config, ranks=2)
    assert code == 0, f"training ended with {code}"
    while server.ask("targets")["activeTargets"]:
        time.sleep(1)


if __name__ == "__main__":
    main()
