"""The Grafana dashboard: what is checked in is what its generator writes, and fits the provisioning.

Grafana itself was not run; its expressions are, see test_prometheus.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

GRAFANA = Path(__file__).parents[2] / "jobs" / "grafana"
FILE = GRAFANA / "dashboards" / "ppar.json"
COLUMNS = 24


@pytest.fixture(scope="module")
def dashboard() -> Any:
    return json.loads(FILE.read_text(encoding="utf-8"))


def test_the_file_is_what_the_generator_writes() -> None:
    command = [sys.executable, str(GRAFANA / "dashboard.py")]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert FILE.read_text(encoding="utf-8") == written, f"run {' '.join(command)} > {FILE}"


def test_panels_lie_side_by_side_and_say_what_good_looks_like(dashboard: Any) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in cells) < COLUMNS
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"].startswith("Good: ")
    numbers = [panel["id"] for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len(set(numbers)) == len(numbers)


def test_every_query_is_of_the_chosen_run_and_source(dashboard: Any) -> None:
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "run"]
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            assert 'run="$run"' in target["expr"], panel["title"]
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"


def test_provisioning_names_the_source_and_the_folder() -> None:
    provisioning = GRAFANA / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "${PROMETHEUS_URL}")
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "ppar.yml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
