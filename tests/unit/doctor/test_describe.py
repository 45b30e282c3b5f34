from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ppar_dist.checkpoint import list_checkpoints
from ppar_dist.data.reading import read_sample
from ppar_dist.doctor.describe import describe, inspect
from ppar_dist.errors import UserError
from tests.unit.tiny_run import make_domain, make_run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inspection")
    make_run(root / "shards", root / "run", steps=(20, 40))
    return root


def test_a_domain_counts_its_own_labels(home: Path, tmp_path: Path) -> None:
    index = make_domain(tmp_path / "day", 4, seed=3)
    facts = inspect(tmp_path / "day")
    labels = np.concatenate([read_sample(index, i).label.ravel() for i in range(4)])
    valid = labels[labels != 255]
    assert (facts["kind"], facts["samples"], facts["sizes"]["36x24"]) == ("domain", 4, 2)
    for k, (name, figures) in enumerate(facts["classes"].items()):
        assert figures["pixel_ratio"] == pytest.approx((valid == k).mean(), abs=1e-5), name
    assert facts["classes"]["car"] == {"pixel_ratio": 0.0, "samples": 0}
    assert inspect(tmp_path / "day" / "index.npy") == facts


def test_a_tar_is_read_without_an_index(home: Path, tmp_path: Path) -> None:
    make_domain(tmp_path / "day", 3)
    (shard,) = (tmp_path / "day").glob("*.tar")
    facts = inspect(shard)
    assert facts["samples"] == 3
    assert facts["members"] == {"jpg": 3, "json": 3, "png": 3}
    assert facts["samples_with_fewer_members"] == 0
    shard.with_name("cut.tar").write_bytes(shard.read_bytes()[:700])
    with pytest.raises(UserError, match=r"cut\.tar: it ends inside .*; copy it again"):
        inspect(shard.with_name("cut.tar"))


def test_a_tar_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    """Its first header announces 2 GiB of names, which are a hole in the file."""
    info = tarfile.TarInfo("./PaxHeaders/a")
    info.type, info.size = tarfile.XHDTYPE, 2 << 30
    path = tmp_path / "bomb.tar"
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT))
    os.truncate(path, 3 << 30)
    with pytest.raises(UserError, match=r"bomb\.tar: a header of 2147483648 bytes .*; copy it again"):
        inspect(path)


def test_a_sample_that_lacks_a_member_is_counted(tmp_path: Path) -> None:
    make_domain(tmp_path / "day", 2)
    (shard,) = (tmp_path / "day").glob("*.tar")
    with tarfile.open(shard) as whole, tarfile.open(tmp_path / "part.tar", "w") as part:
        for member in whole.getmembers()[:-1]:
            part.addfile(member, whole.extractfile(member))
    assert inspect(tmp_path / "part.tar")["samples_with_fewer_members"] == 1


def test_a_checkpoint_and_its_damage(home: Path) -> None:
    first, last = list_checkpoints(home / "run")
    facts = inspect(last)
    assert (facts["kind"], facts["whole"], facts["state"]["step"]) == ("checkpoint", True, 40)
    assert facts["model"]["values"] > 1000
    assert "files" not in facts["manifest"]
    weights = first / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    facts = inspect(first)
    assert facts["whole"] is False
    assert facts["problems"] == ["model.safetensors differs from what was written (sha256)"]


def test_a_checkpoint_without_a_readable_model(home: Path, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"step": 3}')
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    facts = inspect(tmp_path)
    assert facts["problems"] == ["manifest.json is missing"]
    assert "unreadable" in facts["model"]


def test_a_run_says_where_it_stands(home: Path) -> None:
    metrics = home / "run" / "metrics"
    metrics.mkdir(exist_ok=True)
    (metrics / "train.jsonl").write_text('{"step": 10, "stage": 1, "loss/total": 0.5}\n{"step": 2')
    facts = inspect(home / "run")
    assert facts["kind"] == "run"
    assert facts["latest"] == "step-00000040"
    assert facts["checkpoints"]["step-00000040"] == "whole"
    assert facts["last_logged"] == {"step": 10, "stage": 1, "loss/total": 0.5}
    assert facts["sources"] == ["a", "b"]
    assert facts["goodput"] is None
    times = ({"time": 100.0, "step": 0, "seconds": 0}, {"time": 150.0, "step": 10, "seconds": 30.5})
    (metrics / "time.jsonl").write_text("".join(json.dumps(line) + "\n" for line in times))
    expected = {"ratio": 0.61, "training_s": 30.5, "lost_s": 0.0, "wall_s": 50.0}
    assert inspect(home / "run")["goodput"] == expected


def test_facts_are_json_and_lines(home: Path) -> None:
    for path in (home / "run", home / "shards" / "a", *list_checkpoints(home / "run")):
        facts = inspect(path)
        assert json.loads(json.dumps(facts)) == facts
        text = describe(facts)
        assert text.startswith(f"kind: {facts['kind']}\n")
        assert all(f"{key}:" in text for key in facts)


def test_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing at"):
        inspect(tmp_path / "gone")
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="neither a domain folder"):
            inspect(path)
