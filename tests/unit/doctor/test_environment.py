"""What the environment says of ranks, and where temporary files go."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ranks import tiny_config
from tests.unit.doctor.worlds import Doctor

POD = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29511"}


def test_what_the_environment_says_is_shown(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing of ranks" in doctor()["environment"]["found"]
    for name, value in POD.items():
        monkeypatch.setenv(name, value)
    found = doctor()["environment"]
    assert found["status"] == "ok"
    assert "RANK=1, WORLD_SIZE=2, MASTER_ADDR=10.0.0.1, MASTER_PORT=29511" in found["found"]


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("WORLD_SIZE", "2", "here is WORLD_SIZE=2 without RANK, MASTER_ADDR, MASTER_PORT; unset WORLD_SIZE"),
        ("OMPI_COMM_WORLD_SIZE", "2", "OMPI_COMM_WORLD_SIZE=2 says that 2 copies of this command"),
    ],
)
def test_what_a_start_would_refuse_is_refused(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str
) -> None:
    monkeypatch.setenv(name, value)
    found = doctor()["environment"]
    assert found["status"] == "failure"
    assert line in found["found"]


def test_a_temporary_folder_too_long_for_sockets(
    doctor: Doctor, blocks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "t" * 71)
    data = tiny_config(blocks, blocks)["data"]
    assert "temporary folder" not in doctor(data=data), "nothing passes through it"
    found = doctor(data=data | {"workers": 1})["temporary folder"]
    assert found["status"] == "failure"
    assert "at most 75 bytes, got 76" in found["found"]
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    assert doctor(data=data | {"workers": 1})["temporary folder"]["status"] == "ok"
