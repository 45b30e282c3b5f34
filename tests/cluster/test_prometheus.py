"""The configuration of jobs/prometheus under a real Prometheus that watches real jobs of two ranks.

Prometheus scrapes and judges every second instead of every 15, and alerts wait 20 s instead of minutes
(see prometheus_server); rules, windows and the console are those of the repository.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.cluster import browser_page
from tests.cluster.programs import needs
from tests.cluster.prometheus_expressions import console, dashboard, rules, selectors
from tests.cluster.prometheus_jobs import Watched, faulty_job, whole_run
from tests.cluster.prometheus_server import CONFIGURATION, Prometheus, prometheus
from tests.faults.jobs import send

RUN = "whole"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    needs("prometheus")
    with prometheus(tmp_path_factory.mktemp("prometheus") / "configuration") as running:
        yield running


@pytest.fixture(scope="module")
def whole(server: Prometheus, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A run through all stages to its end, watched from before it began until after it has ended."""
    return whole_run(server, RUN, tmp_path_factory.mktemp("whole"))


def promtool(*arguments: str | Path) -> str:
    needs("promtool")
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configuration_and_rules_are_valid() -> None:
    promtool("check", "config", CONFIGURATION / "prometheus.yml")
    promtool("check", "rules", *sorted((CONFIGURATION / "rules").glob("*.yml")))


def test_alerts_fire_when_they_should_and_not_otherwise() -> None:
    promtool("test", "rules", *sorted((CONFIGURATION / "rule_tests").glob("*.yml")))


def test_every_alert_is_tested_and_explained() -> None:
    alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    fired, silent = set(), set()
    for path in (CONFIGURATION / "rule_tests").glob("*.yml"):
        for case in yaml.safe_load(path.read_text())["tests"]:
            for check in case.get("alert_rule_test", ()):
                (fired if check.get("exp_alerts") else silent).add(check["alertname"])
    assert fired == set(alerts)
    assert silent == set(alerts)
    runbook = (CONFIGURATION / "RUNBOOK.md").read_text()
    for name, rule in alerts.items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["runbook"] == f"jobs/prometheus/RUNBOOK.md#{name.lower()}"
        assert f"\n### {name}\n" in runbook


def test_pods_become_ranks(tmp_path: Path) -> None:
    """Kubernetes' labels of pods, as its API gives them, through the relabelling of prometheus-k8s.yml.

    Debian's Prometheus is built without the Kubernetes discovery itself: a file stands in for it.
    """
    config = yaml.safe_load((CONFIGURATION / "prometheus-k8s.yml").read_text())
    (scrape,) = config["scrape_configs"]
    found = scrape.pop("kubernetes_sd_configs")
    assert found == [
        {"role": "pod", "selectors": [{"role": "pod", "label": "app.kubernetes.io/name=ppar-dist"}]}
    ]
    pods = [
        pod("10.0.0.7:9401", port="metrics-1", jobset="roads"),
        pod("10.0.0.7:29500", port="ranks"),
        pod("10.0.0.8:9400", phase="Succeeded"),
        pod("10.0.0.9:9400", index="0"),
    ]
    (tmp_path / "pods.json").write_text(json.dumps(pods))
    scrape["file_sd_configs"] = [{"files": [str(tmp_path / "pods.json")]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config | {"rule_files": []}))
    answer = json.loads(
        promtool("check", "service-discovery", "--timeout=5s", tmp_path / "prometheus.yml", "ppar")
    )
    kept = [one["labels"] for one in answer if one["labels"]]
    names = ("instance", "run", "rank", "pod", "node")
    assert sorted(tuple(labels[name] for name in names) for labels in kept) == [
        ("10.0.0.7:9401", "roads", "1-1", "roads-1-abcde", "gpu-3"),
        ("10.0.0.9:9400", "roads-train-0", "0-0", "roads-0-abcde", "gpu-3"),
    ]


def pod(
    address: str, port: str = "metrics-0", phase: str = "Running", index: str = "1", jobset: str = ""
) -> dict[str, Any]:
    labels = {
        "namespace": "training",
        "pod_name": f"roads-{index}-abcde",
        "pod_node_name": "gpu-3",
        "pod_phase": phase,
        "pod_container_port_name": port,
        "pod_annotation_batch_kubernetes_io_job_completion_index": index,
        "pod_label_batch_kubernetes_io_job_name": "roads-train-0",
        "pod_label_jobset_sigs_k8s_io_jobset_name": jobset,
    }
    return {"targets": [address], "labels": {f"__meta_kubernetes_{k}": v for k, v in labels.items()}}


def test_every_expression_finds_data(server: Prometheus, whole: Watched) -> None:
    """Of every panel, console line and rule; of an alert, each series that it reads."""
    wanted = {f"console: {place}": expr for place, expr in console(RUN).items()}
    wanted |= {f"dashboard: {place}": expr for place, expr in dashboard(RUN).items()}
    for rule in rules():
        if "record" in rule:
            wanted[f"recorded: {rule['record']}"] = rule["record"]
        wanted |= {f"{rule.get('alert') or rule['record']}: {s}": s for s in selectors(rule["expr"])}
    without = []
    for place, expression in wanted.items():
        found = server.course(expression, whole.start, whole.end)
        if not any(value == value for values in found for value in values):  # a nan is not itself
            without.append(f"{place}: {expression}")
    # A sample that is bad, and no other, brings the one into being (see the faulty job), a GPU the other.
    rare = [
        place for place in without if place.endswith("ppar_bad_samples_total") or "ppar_device_mem" in place
    ]
    assert without == rare
    assert len(wanted) > 100


def test_a_whole_run_is_seen_from_its_first_stage_to_its_last(server: Prometheus, whole: Watched) -> None:
    (stages,) = server.course(f'max by (run) (ppar_alignment_stage{{run="{RUN}"}})', whole.start, whole.end)
    assert sorted(set(stages)) == [0, 1, 2, 3]
    assert stages == sorted(stages)
    (ranks,) = server.course(f'run:ppar_ranks_up:sum{{run="{RUN}"}}', whole.start, whole.end)
    assert max(ranks) == 2


def test_a_run_without_fault_fires_nothing_and_takes_its_targets_away(
    server: Prometheus, whole: Watched
) -> None:
    assert server.fired(RUN, whole.start, time.time()) == set()
    assert server.ask("targets")["activeTargets"] == []
    assert list(server.targets.glob("*.json")) == []


def test_the_console_shows_the_whole_run(server: Prometheus, whole: Watched, tmp_path: Path) -> None:
    needs("chromium")
    html = browser_page.dump(f"{server.url}/consoles/ppar.html?run={RUN}&refresh=0")
    text = browser_page.said(html)
    assert "no data" not in text, text
    assert "finished" in text
    assert "100 % done, stage 3 pixel" in text
    assert "No alert is firing." in text
    for name in ("0 warm-up", "1 text", "2 visual text", "3 pixel"):
        assert name in text
    for title in ("Sample weights by domain", "Loss by term", "mIoU by target", "What happened"):
        assert title in text
    for domain in ("left", "right"):
        assert f"{domain} median" in text
    assert f"{whole.steps} of {whole.steps}" in text
    assert html.count("<path") > 20  # lines and bands were drawn, not only announced
    outside = [
        part for part in ("http://", "https://") if part in html.replace("http://www.w3.org/2000/svg", "")
    ]
    assert outside == []


@pytest.mark.parametrize(("theme", "low", "high"), [("light", 230, 255), ("dark", 0, 50)])
def test_the_console_has_two_themes(
    server: Prometheus, whole: Watched, tmp_path: Path, theme: str, low: int, high: int
) -> None:
    needs("chromium")
    page = f"{server.url}/consoles/ppar.html?run={RUN}&refresh=0&theme={theme}"
    browser_page.screenshot(page, tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (1920, 1080)
        pixels = np.asarray(picture.convert("L"))
    assert low <= np.median(pixels) <= high
    assert pixels[-40:].std() > 5  # panels reach down to the foot of the screen


def test_the_console_without_a_run_says_what_to_do(tmp_path: Path) -> None:
    needs("prometheus", "chromium")
    with prometheus(tmp_path / "configuration") as empty:
        text = browser_page.said(browser_page.dump(f"{empty.url}/consoles/ppar.html"))
    assert "No run has been scraped" in text
    assert "monitoring.targets_file" in text


def test_faults_are_told(server: Prometheus, tmp_path: Path) -> None:
    """One job: bad samples, steps that are not finite, missing storage, a rank stopped, all ranks killed."""
    with faulty_job(server, "faulty", tmp_path) as faulty:
        server.wait_for(lambda: server.now("ppar_skipped_steps_total > 0"), "skipped step")
        await_alerts(server, "loss not finite", "PparNonFiniteStreak", "PparSkippedSteps")
        faulty.go_on()
        await_alerts(server, "loss not finite", "PparRolledBack")
        await_alerts(server, "sample changed", "PparBadSamples")
        faulty.lose_storage()
        await_alerts(server, "storage missing", "PparCheckpointFailed", "PparCheckpointOld")
        text = browser_page.said(browser_page.dump(f"{server.url}/consoles/ppar.html?run=faulty&refresh=0"))
        assert "needs help" in text
        assert "a checkpoint could not be written" in text
        send(faulty.rank(1), signal.SIGSTOP)
        await_alerts(server, "rank 1 stopped", "PparTargetDown", "PparRankMissing", "PparStalled")
        down = server.now('up{run="faulty"} == 0')
        assert [dict(labels)["rank"] for labels in down] == ["1"]
    server.wait_for(lambda: len(server.now('up{run="faulty"} == 0')) == 2, "both ranks down")
    (server.targets / "faulty.json").unlink()
    seconds = server.wait_for(
        lambda: not server.now('ALERTS{alertname="PparTargetDown"}'), "end of the alert"
    )
    print(f"targets file removed | PparTargetDown ends | {seconds:.1f} s")


def await_alerts(server: Prometheus, fault: str, *names: str) -> None:
    """Wait for alerts of one fault, and say how long each took from now on (`pytest -s`)."""
    began = time.monotonic()
    for name in names:
        server.wait_for(lambda name=name: name in server.firing(), name)
        print(f"{fault} | {name} | {time.monotonic() - began:.1f} s")
