"""Records of checkpoints that earlier versions wrote: what they lack and what they hold too much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppar_dist.config.identity import changes_since, determining
from ppar_dist.config.load import parse_config
from ppar_dist.config.schema import Config
from tests.ranks import tiny_config


def config(tmp_path: Path, **sections: Any) -> Config:
    return parse_config(tiny_config(tmp_path, tmp_path / "run", **sections))


def test_a_key_that_a_record_lacks_stands_for_its_default(tmp_path: Path) -> None:
    now = config(tmp_path)
    record = determining(now)
    del record["engine"]["tf32"]
    assert changes_since(record, now) == []
    assert changes_since(record, config(tmp_path, engine={"tf32": True})) == ["engine.tf32: False -> True"]


def test_a_key_that_has_become_free_is_no_change(tmp_path: Path) -> None:
    now = config(tmp_path)
    record = determining(now)
    record["engine"]["zero_stage"] = 2
    record["train"]["log_every"] = 77
    assert changes_since(record, now) == []


def test_other_differences_are_told(tmp_path: Path) -> None:
    record = determining(config(tmp_path)) | {"seed": 5}
    assert changes_since(record, config(tmp_path)) == ["seed: 5 -> 0"]
