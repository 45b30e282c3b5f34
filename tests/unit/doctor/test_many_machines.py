"""``ppar-dist doctor --nodes``: what a job reaches on many machines, told on this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ppar_dist.cli.parser import main
from ppar_dist.config.load import load_config
from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.cluster import Cluster
from ppar_dist.doctor.device_cost import ImageCost
from ppar_dist.doctor.outlook import buffer_bytes, save_bytes
from ppar_dist.doctor.scale import Link, Machines
from ppar_dist.models.segmentor import build_segmentor
from ppar_dist.ppar.objective import Objective
from tests.unit.doctor.worlds import Doctor

CONFIGS = Path(__file__).parents[3] / "configs"
NAMES = ("figures", "step on many machines", "failures", "checkpoint interval", "storage rate")


def told(capsys: pytest.CaptureFixture[str], *line: str) -> dict[str, Any]:
    main(["doctor", *line, "--json", "--quick"])
    report = json.loads(capsys.readouterr().out)
    return {check["name"]: check for check in report["checks"]}


def test_nothing_is_told_of_many_machines_unasked(doctor: Doctor) -> None:
    assert not set(NAMES) & set(doctor())


def test_a_small_job_is_timed_on_this_cpu_and_its_own_images(doctor: Doctor) -> None:
    checks = doctor("--nodes", "3", "--storage-gbps", "8")
    assert set(NAMES) <= set(checks)
    assert not any("this check itself failed" in check["found"] for check in checks.values())
    figures = checks["figures"]["facts"]
    assert "measured here, on the CPU" in figures["device"]
    assert "measured on the sources here" in figures["loader"]
    assert figures["storage of a machine"] == "954 MiB/s (told)"
    facts = checks["step on many machines"]["facts"]
    assert facts["images"] == 6
    assert facts["seconds"] == pytest.approx(sum(facts["parts"].values()))
    assert facts["images_per_second"] == pytest.approx(6 / facts["seconds"])
    assert facts["efficiency"] < 1
    assert 0 < checks["failures"]["facts"]["goodput"] <= 1


def test_a_gpu_recipe_is_told_without_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [str(CONFIGS / "gta5_rn101.yaml"), f"run.dir={tmp_path / 'run'}", "--nodes", "128"]
    line += ["--gpus-per-node", "8", "--storage-gbps", "80"]
    slow = told(capsys, *line, "--network-gbps", "100")
    found = slow["step on many machines"]
    assert found["status"] == "warning"
    assert "128 machines of 8 H100s, 1,024 images a step" in found["found"]
    assert "train.global_batch=16 does not divide" in found["found"]
    assert found["facts"]["limit"] in ("gradients", "parameters")
    assert slow["batch"]["facts"]["ranks"] == 1024, "the other checks mean the same job"
    figures = slow["figures"]["facts"]
    assert "assumed, not run" in figures["device"]
    assert figures["network of a machine"].startswith("100 Gbit/s")
    assert "told" in figures["network of a machine"]
    rates = slow["storage rate"]["facts"]
    assert rates["read_bytes_per_second"] == pytest.approx(1e6 * found["facts"]["images_per_second"], rel=0.3)


def test_frequent_failures_ask_for_frequent_checkpoints(doctor: Doctor) -> None:
    line = ("--nodes", "2", "--storage-gbps", "8", "train.steps=20000", "checkpoint.every=19999")
    calm, wild = (doctor(*line, "--mtbf-days", days)["checkpoint interval"] for days in ("1e6", "0.01"))
    assert calm["facts"]["recommended"] > wild["facts"]["recommended"]
    assert wild["status"] == "warning"
    assert wild["remedy"] == f"set checkpoint.every={wild['facts']['recommended']}"
    assert wild["facts"]["best_goodput"] > wild["facts"]["goodput"]


def test_a_run_has_no_machines_to_tell_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path), "--nodes", "2"]) == 78
    assert "--nodes has no effect on it, leave it out" in capsys.readouterr().err


def test_the_buffer_is_about_as_large_as_the_real_one() -> None:
    config = load_config(CONFIGS / "roads.yaml")
    case = ConfigCase(config, cluster=Cluster(1))
    width = build_segmentor(config, case.classes, load_weights=False)[0].backbone.embed_dim
    text = torch.nn.functional.normalize(torch.ones(case.classes.num_classes, width), dim=1)
    real = Objective(config.ppar, text, len(config.data.sources), case.classes.num_classes).buffer.nbytes
    assert buffer_bytes(config, case.classes, width) == pytest.approx(real, rel=0.05)


def test_each_rank_writes_its_part_of_the_moments() -> None:
    config = load_config(CONFIGS / "roads.yaml", ["ppar.enabled=false"])
    cost = ImageCost(10_000_000, 1_000_000, 1, 1, 0, 0, 1, 1)
    link = Link(0.0, 1.0)
    one, many = (save_bytes(config, cost, Machines(n, 8, link, link, 8, 1.0)) for n in (1, 4))
    assert one.written == many.written == 4e6 + 8e6, "what is frozen is linked"
    assert one.whole == many.whole == 4 * 10e6 + 8e6
    assert many.main == 4e6 + 8e6 / 32
    assert one.machine == 4e6 + 8e6
    assert many.machine == 4e6 + 8e6 / 4
