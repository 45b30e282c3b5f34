"""What a job would go on from."""

from __future__ import annotations

import json
from pathlib import Path

from ppar_dist.data.index import DomainIndex
from tests.unit.doctor.worlds import Doctor, begun, flip, last_manifest


def test_a_damaged_newest_checkpoint_is_passed_over(doctor: Doctor, blocks: Path, tmp_path: Path) -> None:
    run = begun(blocks, tmp_path)
    assert doctor()["start"]["facts"]["checkpoint"] == "step-00000006"
    flip(run / "checkpoints" / "step-00000006" / "model.safetensors")
    checks = doctor()
    assert checks["start"]["status"] == "warning"
    assert checks["start"]["facts"]["checkpoint"] == "step-00000004"
    assert checks["start"]["facts"]["steps_left"] == 4
    assert "step-00000006 is passed over: model.safetensors differs" in checks["start"]["found"]
    (run / "checkpoints" / "step-00000004" / "manifest.json").unlink()
    checks = doctor()
    assert checks["start"]["status"] == "failure"
    assert "would refuse to begin at step 0 again" in checks["start"]["found"]


def test_a_changed_configuration_is_shown(doctor: Doctor, blocks: Path, tmp_path: Path) -> None:
    begun(blocks, tmp_path)
    assert doctor("train.log_every=3")["same settings"]["status"] == "ok"
    checks = doctor("optim.lr=0.5")
    assert checks["same settings"]["status"] == "failure"
    assert "optim.lr: 0.001 -> 0.5" in checks["same settings"]["found"]


def test_data_that_changed_since_the_checkpoint(doctor: Doctor, blocks: Path, tmp_path: Path) -> None:

    run = begun(blocks, tmp_path)
    path = last_manifest(run)
    noted = {name: DomainIndex.open(blocks / name).fingerprint for name in ("left", "right")}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": noted}))
    assert doctor()["same data"]["status"] == "ok"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": noted | {"right": "other"}}))
    checks = doctor()
    assert checks["same data"]["status"] == "failure"
    assert checks["same data"]["facts"]["changed"] == ["right"]
