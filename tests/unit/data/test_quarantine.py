"""The quarantine log, the limit on bad data, and the words that name what is wrong."""

from __future__ import annotations

import ast
import json
import logging
import pickle
import shutil
from pathlib import Path

import pytest

from ppar_dist.data.order import DomainShare, Order
from ppar_dist.data.quarantine import BadSample, QuarantineLog, bad_samples, excess
from ppar_dist.data.shards.sample import REASONS, SampleError
from tests.unit.data.shards.test_bad_shards import BROKEN
from tests.unit.data.test_bad_data import FAULTS

PACKAGE = Path(__file__).parents[3] / "ppar_dist"
BAD = BadSample(7, 1, 3, "shard-000000.tar", "rain_3", "checksum", "the image is not what was indexed")


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_bad_sample_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "quarantine" / "rank-00000.jsonl"
    log = QuarantineLog(path, ["day", "rain"])
    assert not path.exists()
    log.write(BAD)
    assert lines(path) == [
        {
            "position": 7,
            "domain": "rain",
            "sample": 3,
            "shard": "shard-000000.tar",
            "key": "rain_3",
            "reason": "checksum",
            "detail": "the image is not what was indexed",
        }
    ]
    log.write(BAD._replace(domain=0, key="ü\udcff"))
    log.close()
    assert [line["domain"] for line in lines(path)] == ["rain", "day"]


def test_warnings_come_at_powers_of_ten_of_each_domain_and_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = QuarantineLog(tmp_path / "q.jsonl", ["day", "rain"])
    with caplog.at_level(logging.WARNING):
        for number in range(250):
            for epoch in (0, 1):  # one that comes again is not another one
                log.write(BAD._replace(position=number + 1000 * epoch, sample=number))
        log.write(BAD._replace(reason="label_id"))
        log.write(BAD._replace(domain=0))
    numbers = [each.getMessage().split(" of domain ") for each in caplog.records]
    assert [number.split()[-1] for number, _ in numbers] == ["1", "10", "100", "1", "1"]
    assert numbers[3][1].startswith("rain, reason label_id: shard-000000.tar sample rain_3: the image is not")
    assert len(lines(tmp_path / "q.jsonl")) == 502


def test_a_torn_line_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    for torn in (b'{"position": 1}\n{"posi', b""):
        path.write_bytes(torn)
        QuarantineLog(path, ["day", "rain"]).write(BAD)
        assert json.loads(path.read_text().splitlines()[-1])["position"] == 7
    path.write_bytes(b'{"position": 1}\n')
    QuarantineLog(path, ["day", "rain"]).write(BAD)
    assert [line["position"] for line in lines(path)] == [1, 7]


def test_a_full_disk_is_a_warning_and_the_bad_sample_is_in_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    (tmp_path / "folder.jsonl").mkdir()
    for name, reason in (("full", "No space left"), ("folder", "Is a directory")):
        log = QuarantineLog(tmp_path / f"{name}.jsonl", ["day", "rain"])
        for _ in range(2):
            log.write(BAD)
        log.close()
        text = " ".join(each.getMessage() for each in caplog.records)
        assert reason in text
        assert '"key": "rain_3"' in text


def test_what_was_tried_in_vain_at_each_position_is_known_from_the_count_alone() -> None:
    order = Order([DomainShare("day", 5, 1.0), DomainShare("rain", 7, 1.0)], 3, 2, 2)
    found = bad_samples(order, 40, [0, 2, 0, 1])
    assert found == [order.locate(41), order.locate(41, 1), order.locate(43)]
    assert bad_samples(order, 40, [0] * 8) == []


@pytest.mark.parametrize(
    ("bad", "samples", "ratio", "problem"),
    [
        ([0, 0], [5, 0], 0.0, None),
        ([1, 0], [5, 0], 0.0, "domain day: 1 bad samples in 5, at most 0 are allowed"),
        ([1, 1], [5, 5], 0.01, None),  # 1 % of at least 100
        ([1, 2], [5, 5], 0.01, "domain rain: 2 bad samples in 5, at most 1 are allowed"),
        ([10, 0], [1000, 0], 0.01, None),
        ([11, 0], [1000, 0], 0.01, "domain day: 11 bad samples in 1000, at most 10 are allowed"),
        ([11, 9], [1000, 100], 0.01, "domain day: .*; domain rain: 9 bad samples in 100, at most 1"),
        ([1000, 0], [1000, 0], 1.0, None),
    ],
)
def test_the_limit(bad: list[int], samples: list[int], ratio: float, problem: str | None) -> None:
    found = excess(bad, samples, ["day", "rain"], ratio)
    if problem is None:
        assert found is None
        return
    assert found is not None
    with pytest.raises(ValueError, match=problem):
        raise ValueError(found)
    assert f"data.max_bad_ratio={ratio:g}" in found
    assert "repair the shards and index them again, or raise data.max_bad_ratio" in found
    assert "\n" not in found


def test_bad_samples_travel_between_processes_and_are_small() -> None:
    assert pickle.loads(pickle.dumps(BAD)) == BAD
    error = SampleError("d/a.tar sample k", "json", "x" * 10_000)
    assert len(error.detail) <= 300
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_every_reason_is_one_of_the_fixed_words() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "SampleError":
                found |= {each.value for each in ast.walk(node.args[1]) if isinstance(each, ast.Constant)}
    assert found - {"_unreadable"} <= set(REASONS)  # f"{kind}_unreadable"
    with pytest.raises(AssertionError, match="sleepy"):
        SampleError("here", "sleepy", "no such reason")


def test_every_word_names_a_fault_that_these_tests_make() -> None:
    made = {reason for reason, *_ in FAULTS.values()} | {reason for reason, *_ in BROKEN.values()}
    assert made | {"json", "exhausted"} == set(REASONS)


def test_a_file_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "quarantine" / "rank-00000.jsonl"
    log = QuarantineLog(path, ["day", "rain"])
    log.write(BAD)
    shutil.rmtree(tmp_path / "quarantine")
    log.write(BAD._replace(position=8))
    assert [line["position"] for line in lines(path)] == [8]
