"""Shards, overlap and classes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ppar_dist.cli.parser import main
from ppar_dist.data.reading import read_sample
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.writer import write_domain
from tests.ranks import tiny_config, write_blocks_domain, write_config
from tests.unit.doctor.worlds import Doctor, flip
from tests.unit.tiny_run import make_domain


def shard_of(domain: Path) -> Path:
    return next(iter(sorted(domain.glob("*.tar"))))


def test_a_flipped_byte_needs_the_hash(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_config(tmp_path / "config.yaml", tiny_config(own, tmp_path / "run")))
    shard = shard_of(own / "right")
    flip(shard, 2000)
    assert main(["doctor", path, "--quick"]) == 0
    assert "contents were not hashed" in capsys.readouterr().out
    assert main(["doctor", path]) == 78
    out = " ".join(capsys.readouterr().out.split())
    assert re.search(r"FAILURE shards 1 of 2 shards cannot be used: .*right/shard-000000\.tar differs", out)
    assert "-> fetch the shard again" in out
    assert out.endswith("fix the failures first")


def test_of_many_bytes_a_sample_is_hashed_and_told(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (DomainIndex.open(own / "left").read(number) for number in range(8))
    samples = [(f"k{number}", raw.image, raw.label, {}) for number, raw in enumerate(rows)]
    write_domain(own / "left", "roads6", samples, samples_per_shard=2)
    path = str(write_config(tmp_path / "config.yaml", tiny_config(own, tmp_path / "run")))
    monkeypatch.setattr("ppar_dist.doctor.data._READ", 2 * shard_of(own / "left").stat().st_size)
    assert main(["doctor", path]) == 0
    told = r"Contents of (\d) of them were hashed .* (\d+) of 12 samples, drawn with seed 0; --all reads all"
    found = re.search(told, " ".join(capsys.readouterr().out.split()))
    assert found
    assert 1 <= int(found[1]) < 5
    for shard in own.glob("*/*.tar"):
        flip(shard, 2000)
    assert main(["doctor", path]) == 78
    out = " ".join(capsys.readouterr().out.split())
    assert f"{found[1]} of 5 shards cannot be used" in out
    assert main(["doctor", path, "--all"]) == 78
    assert "5 of 5 shards cannot be used" in " ".join(capsys.readouterr().out.split())


def test_common_samples_are_found_in_a_share_of_large_domains(
    doctor: Doctor, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(own / "left")
    make_domain(own / "left", 40, seed=9)
    copied = [DomainIndex.open(own / "left").read(number) for number in range(40)]
    rows = [(f"other_{number}", raw.image, raw.label, {}) for number, raw in enumerate(copied)]
    write_domain(own / "again", "roads6", rows[::-1])
    monkeypatch.setattr("ppar_dist.doctor.overlap._MOST", 20)
    checks = doctor(root=own, targets={"a": str(own / "again")})
    assert checks["overlap"]["status"] == "failure"
    assert 1 <= checks["overlap"]["facts"]["shared"]["source left / target a"] < 40


def test_every_missing_and_every_cut_shard_is_named(doctor: Doctor, own: Path) -> None:
    shard_of(own / "left").unlink()
    cut = shard_of(own / "right")
    cut.write_bytes(cut.read_bytes()[:-512])
    checks = doctor(root=own)
    assert checks["shards"]["status"] == "failure"
    assert re.search(r"left/shard-000000\.tar is missing", checks["shards"]["found"])
    assert re.search(
        r"right/shard-000000\.tar has [\d,]+ bytes, [\d,]+ were indexed", checks["shards"]["found"]
    )
    assert checks["domains"]["status"] == "failure"
    assert {"source left", "source right"} == checks["domains"]["facts"]["domains"].keys()


def test_an_index_of_another_version_and_of_other_classes(doctor: Doctor, own: Path) -> None:
    meta = json.loads((own / "left" / "domain.json").read_text())
    (own / "left" / "domain.json").write_text(json.dumps(meta | {"version": 99}))
    make_domain(own / "city", 2, classes="cityscapes19")
    checks = doctor(root=own, targets={"city": str(own / "city"), "gone": str(own / "gone")})
    found = checks["domains"]["found"]
    assert "source left" in found
    assert "version 99" in found
    assert re.search("target city: .*has class set cityscapes19", found)
    assert "target gone: no domain folder" in found
    assert "source right" not in found


def test_a_target_that_is_a_source_leaks(doctor: Doctor, blocks: Path) -> None:
    checks = doctor(targets={"unseen": str(blocks / "left")})
    assert checks["overlap"]["status"] == "failure"
    assert "source left and target unseen share 8 samples" in checks["overlap"]["found"]


def test_a_single_sample_in_common_leaks_under_another_key(doctor: Doctor, own: Path) -> None:

    raw = DomainIndex.open(own / "left").read(5)
    other = make_domain(own / "noise", 3, seed=9).read(1)
    rows = [("renamed", raw.image, raw.label, {}), ("new", other.image, other.label, {})]
    write_domain(own / "mixed", "roads6", rows)
    checks = doctor(root=own, targets={"mixed": str(own / "mixed"), "noise": str(own / "noise")})
    found = checks["overlap"]["found"]
    assert found == "source left and target mixed share 1 sample, for example s0005"
    assert checks["overlap"]["facts"]["shared"] == {"source left / target mixed": 1}


def test_sources_that_share_samples_are_a_warning(doctor: Doctor, own: Path) -> None:
    shutil.copytree(own / "left", own / "again")
    checks = doctor(root=own, data={**tiny_config(own, own)["data"], "sources": ["left", "again"]})
    assert checks["overlap"]["status"] == "warning"


def test_a_class_that_never_occurs_is_named(doctor: Doctor, own: Path) -> None:
    checks = doctor(root=own, data={**tiny_config(own, own)["data"], "sources": ["right"]})
    assert checks["classes"]["status"] == "warning"
    assert checks["classes"]["facts"]["never"] == ["car"]
    assert "it cannot be learnt: car\n" in checks["classes"]["found"]


def test_a_class_held_out_counts_as_absent(doctor: Doctor, own: Path) -> None:
    write_blocks_domain(own / "late", samples=8, seed=3, rare_in=7)
    data = {**tiny_config(own, own)["data"], "sources": ["late"]}
    assert doctor(root=own, data=data)["classes"]["facts"]["never"] == []
    assert doctor(root=own, data={**data, "holdout": 0.2})["classes"]["facts"]["never"] == ["car"]


def test_shares_of_pixels_are_those_of_the_labels(doctor: Doctor, own: Path) -> None:

    index = make_domain(own / "noise", 6, seed=4)
    labels = np.concatenate([read_sample(index, i).label.ravel() for i in range(6)])
    checks = doctor(root=own, data={**tiny_config(own, own)["data"], "sources": ["noise"]})
    ratios = checks["classes"]["facts"]["pixel_ratio"]["noise"]
    valid = labels[labels != 255]
    assert list(ratios.values()) == pytest.approx([(valid == k).mean() for k in range(6)], abs=1e-5)
    ignored = checks["unlabelled"]["facts"]["ignored_ratio"]["source noise"]
    assert ignored == pytest.approx((labels == 255).mean(), abs=1e-5)


def test_samples_left_out_by_indexing_are_counted(doctor: Doctor, own: Path) -> None:
    lines = [{"key": "a", "reason": "truncated"}, {"key": "b", "reason": "label_id"}] * 2
    (own / "left" / "quarantine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    checks = doctor(root=own)
    assert checks["left out"]["facts"] == {"source left": {"truncated": 2, "label_id": 2}}
    assert checks["left out"]["status"] == "warning"
