"""The checkpoint that a job would resume from."""

from __future__ import annotations

from pathlib import Path

from ppar_dist.config.identity import content_hash, determining
from ppar_dist.config.load import load_config
from ppar_dist.data.shards.index import DomainIndex
from tests.unit.doctor.worlds import Doctor, begun, flip, note, note_state


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


def test_a_run_that_lost_its_configuration_is_compared_with_its_checkpoint(
    doctor: Doctor, blocks: Path, tmp_path: Path
) -> None:
    run = begun(blocks, tmp_path)
    note(run, config=determining(load_config(run / "config.yaml")))
    (run / "config.yaml").unlink()
    checks = doctor("train.log_every=3")
    assert checks["same settings"]["found"] == "computes the same as step-00000006"
    assert "optim.lr: 0.001 -> 0.5" in doctor("optim.lr=0.5")["same settings"]["found"]


def test_positions_stepped_over_are_not_a_fault(doctor: Doctor, blocks: Path, tmp_path: Path) -> None:
    run = begun(blocks, tmp_path)
    note_state(run, samples_seen=6 * 6 + 12, stepped_over=12)
    assert doctor()["position"]["status"] == "ok"
    note_state(run, samples_seen=6 * 6 + 12, stepped_over=6)
    checks = doctor()
    assert checks["position"]["status"] == "failure"
    assert "48 samples, 6 of them stepped over, in 6 steps" in checks["position"]["found"]


def test_text_that_changed_since_the_checkpoint(doctor: Doctor, blocks: Path, tmp_path: Path) -> None:
    run = begun(blocks, tmp_path)
    note(run, text_sha256=content_hash(load_config(run / "config.yaml").text.file))
    assert doctor()["same text"]["status"] == "ok"
    note(run, text_sha256="other")
    assert "does not hold what step-00000006 was trained with" in doctor()["same text"]["found"]


def test_data_that_changed_since_the_checkpoint(doctor: Doctor, blocks: Path, tmp_path: Path) -> None:

    run = begun(blocks, tmp_path)
    noted = {name: DomainIndex.open(blocks / name).fingerprint for name in ("left", "right")}
    note(run, data=noted)
    assert doctor()["same data"]["status"] == "ok"
    note(run, data=noted | {"right": "other"})
    checks = doctor()
    assert checks["same data"]["status"] == "failure"
    assert checks["same data"]["facts"]["changed"] == ["right"]
