"""Whole jobs on data that go bad: they finish, alike on any number of ranks, and say what was bad."""

from __future__ import annotations

import json
import re
import signal
import sys
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.kills import history
from ppar_dist import checkpoint
from ppar_dist.config.load import load_config
from ppar_dist.data.order import Order
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.writer import write_domain
from ppar_dist.data.sources import open_sources, training_shares
from ppar_dist.run.audit import audit
from tests.bucket import bucket, place_of
from tests.faults.jobs import Job, job, ours, tiny_run
from tests.ranks import TIMEOUT_S, read_lines, run_command, run_ranks, start_ranks
from tests.sabotage.pace import Pace
from tests.unit.street_shards import overwrite, scenes, shard_of

SIZES = {"day": 24, "rain": 18}
PER_SHARD = 3
BATCH, STEPS, CHANGE_AT = 6, 20, 3  # shards change before the data of the third step are read
SPOILED = 4  # sample of day that was corrupted after indexing
NO_CACHE = {"ahead": 0, "size": 1}  # of a bucket: what a node holds when shards change stays good
LENIENT: dict[str, Any] = {"max_bad_ratio": 1.0, "block": PER_SHARD, "window": 1, "cache": NO_CACHE}
REWRITTEN = "checksum" if bucket() is None else "shard_changed"  # a bucket's ETags tell, until a restart


def write_domains(root: Path) -> Path:
    for name, count in SIZES.items():
        write_domain(root / name, "roads6", scenes(name, count), samples_per_shard=PER_SHARD)
    return root


def setup(folder: Path, data: dict[str, Any], **sections: dict[str, Any]) -> tuple[Path, str]:
    """A job on two domains of its own; sample ``SPOILED`` of day is not what was indexed."""
    root = write_domains(folder / "shards")
    overwrite(DomainIndex.open(root / "day"), SPOILED, "image", b"spoiled")
    train = {"steps": STEPS, "global_batch": BATCH, "log_every": 1, "ledger": True}
    sources = {"sources": list(SIZES), "size": 24, "crop": [24, 32]}
    sections = {"train": train, **sections}
    return tiny_run(root, folder, data=sources | data, **sections)


def places(config: str) -> list[list[tuple[str, int]]]:
    """(domain, sample) of every position: that of its turn, then its replacements."""
    cfg = load_config(Path(config))
    indexes = open_sources(cfg)
    order = Order(training_shares(cfg, indexes), cfg.seed, cfg.data.block, cfg.data.window)
    found = []
    for position in range(BATCH * STEPS):
        turns = [order.locate(position, attempt) for attempt in range(16)]
        found.append([(indexes[turn.domain].name, turn.sample) for turn in turns])
    return found


def last_shards(config: str) -> tuple[int, int]:
    """Two shards of day that the first steps do not touch, by number; no rank has them open then."""
    early = places(config)[: (CHANGE_AT - 1) * BATCH]
    used = {sample // PER_SHARD for tried in early for domain, sample in tried[:3] if domain == "day"}
    free = [n for n in range(SIZES["day"] // PER_SHARD) if n not in used | {SPOILED // PER_SHARD}]
    assert len(free) >= 2, free
    return free[0], free[1]


def changing(config: str, folder: Path) -> list[str]:
    """The command of a job under which two shards of day change."""
    gone, rewritten = (f"shard-{number:06d}.tar" for number in last_shards(config))
    domain = f"{place_of(folder / 'shards')}/day"
    return ["tests.sabotage", f"shards={CHANGE_AT},{domain},{gone},{rewritten}"]


def run_changing(config: str, ranks: int, folder: Path) -> None:
    processes = start_ranks(["train", config], ranks, changing(config, folder))
    outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, outputs


def expected(
    config: str, restart: int = STEPS
) -> tuple[list[tuple[int, str]], Counter[tuple[int, str, int, str]]]:
    """What is trained on, and what is found bad, written down from the order and the shards' fate.

    Args:
        config: of the job.
        restart: steps before it was started again.
    """
    gone, rewritten = last_shards(config)

    def fault(domain: str, sample: int, position: int) -> str | None:
        if domain == "day" and sample == SPOILED:
            return "checksum"
        if domain == "day" and position >= (CHANGE_AT - 1) * BATCH:
            found = REWRITTEN if position < restart * BATCH else "checksum"
            return {gone: "shard_missing", rewritten: found}.get(sample // PER_SHARD)
        return None

    trained, bad = [], Counter[tuple[int, str, int, str]]()
    for position, turns in enumerate(places(config)):
        for domain, sample in turns:
            reason = fault(domain, sample, position)
            if reason is None:
                trained.append((position, f"{domain}/{domain}_{sample}"))
                break
            bad[position, domain, sample, reason] += 1
    return trained, bad


def quarantined(run: Path) -> Counter[tuple[int, str, int, str]]:
    lines = [line for path in (run / "quarantine").glob("*.jsonl") for line in read_lines(path)]
    assert all(line["key"] == f"{line['domain']}_{line['sample']}" for line in lines)
    return Counter((line["position"], line["domain"], line["sample"], line["reason"]) for line in lines)


def by_reason(bad: Counter[tuple[int, str, int, str]]) -> dict[tuple[str, str], int]:
    return dict(Counter((domain, reason) for _, domain, _, reason in bad.elements()))


def assert_as_expected(run: Path, trained: Sequence[tuple[int, str]], bad: Counter[Any]) -> None:
    assert history(run) == list(trained)
    assert audit(run).problems == []
    rows = [row for record in read_lines(run / "metrics" / "samples.jsonl") for row in record["samples"]]
    assert [(row["position"], f"{row['domain']}/{row['key']}") for row in rows] == list(trained)
    assert quarantined(run) == bad
    state = checkpoint.read_state(checkpoint.resolve(run))
    counted = {(domain, reason): n for domain, found in state["bad"].items() for reason, n in found.items()}
    assert counted == by_reason(bad)
    once = {(domain, sample) for _, domain, sample, _ in bad}
    assert {(name, sample) for name, found in state["bad_samples"].items() for sample in found} == once
    assert {reason for *_, reason in bad} >= {"checksum", "shard_missing"}


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_goes_bad_is_replaced_alike_on_any_number_of_ranks(tmp_path: Path, ranks: int) -> None:
    """A sample spoiled after indexing, a shard that vanishes and one that is rewritten while training."""
    run, config = setup(tmp_path, LENIENT)
    trained, bad = expected(config)
    run_changing(config, ranks, tmp_path)
    assert_as_expected(run, trained, bad)


def test_a_resume_on_other_ranks_with_a_shard_missing_gives_the_same(tmp_path: Path) -> None:
    """And the endpoint counts what the quarantine lists."""
    run, config = setup(tmp_path, LENIENT, monitoring={"enabled": True, "port": 0})
    hold = Pace(tmp_path / "hold", first_loss(config))
    sabotage = [*changing(config, tmp_path), hold.hold]
    command = [sys.executable, "-m", *sabotage, "train", config, "--nproc", "1"]
    with job(command, tmp_path / "log") as started:
        started.wait_for(lambda: is_counted(started, run), "bad samples in the metrics")
        started.process.send_signal(signal.SIGUSR1)
        assert started.wait() == 75, started.output
    stopped_at = checkpoint.read_state(checkpoint.resolve(run))["step"]
    assert CHANGE_AT <= stopped_at < STEPS
    gone = last_shards(config)[0]
    with job(ours("train", config, "--nproc", "2"), tmp_path / "log2") as started:
        assert started.wait() == 0, started.output
        assert f"shard-{gone:06d}.tar is missing" in started.output
        assert "3 of 24 samples lost; training replaces them" in started.output
    trained, bad = expected(config, stopped_at)
    assert_as_expected(run, trained, bad)


def first_loss(config: str) -> int:
    """The first step that meets a sample of the shard that has vanished."""
    gone = last_shards(config)[0]
    return 1 + min(
        position // BATCH
        for position, turns in enumerate(places(config))
        for domain, sample in turns[:1]
        if position >= (CHANGE_AT - 1) * BATCH and domain == "day" and sample // PER_SHARD == gone
    )


def is_counted(started: Job, run: Path) -> bool:
    """Whether ppar_bad_samples_total is what the quarantine holds, among it samples of a vanished shard."""
    url = re.search(r"^metrics: (\S+)", started.output, re.MULTILINE)
    if url is None or not (run / "quarantine").exists():
        return False
    with urllib.request.urlopen(url[1], timeout=60) as reply:
        text = reply.read().decode()
    pattern = r'^ppar_bad_samples_total\{domain="(\w+)",reason="(\w+)"\} (\S+)'
    found = re.findall(pattern, text, re.MULTILINE)
    said = {(domain, reason): float(value) for domain, reason, value in found if float(value)}
    # They are written down before the step that counts them: a look within a step does not match.
    return ("day", "shard_missing") in said and said == by_reason(quarantined(run))


@pytest.mark.parametrize("ranks", [1, 2])
def test_one_bad_sample_of_many_epochs_is_one(tmp_path: Path, ranks: int) -> None:
    run, config = setup(tmp_path, LENIENT | {"max_bad_ratio": 0.01})
    run_ranks(["train", config], ranks)
    assert {(domain, sample) for _, domain, sample, _ in quarantined(run)} == {("day", SPOILED)}
    assert quarantined(run).total() >= 2, "it came again"
    assert checkpoint.read_state(checkpoint.resolve(run))["bad_samples"] == {"day": [SPOILED]}


def test_too_many_bad_samples_end_every_rank(tmp_path: Path) -> None:
    run, config = setup(tmp_path, LENIENT | {"max_bad_ratio": 0.04})
    processes = start_ranks(["train", config], 2, changing(config, tmp_path))
    outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [78, 78], outputs
    for output in outputs:
        assert "too much bad data (data.max_bad_ratio=0.04 of a domain's samples" in output
        assert re.search(r"domain day: \d+ bad samples in \d+, at most 4 are allowed", output), output
        assert "Traceback" not in output
    assert quarantined(run).total() >= 5
    missing = run_command(["train", config, "--nproc", "1"])
    assert missing.returncode == 78
    assert "3 of 24 samples lost, more than data.max_bad_ratio=0.04" in missing.stderr


def test_evaluations_leave_bad_samples_out_and_say_so(tmp_path: Path) -> None:
    """Held-out samples on two ranks, and a target of which a shard is missing and a sample is spoiled."""
    night = write_domain(tmp_path / "night", "roads6", scenes("night", 9), samples_per_shard=PER_SHARD)
    overwrite(night, 0, "label", b"spoiled")
    shard_of(night, 8).unlink()
    run, config = setup(tmp_path, LENIENT | {"holdout": 0.25}, targets={"night": str(night.path)})
    for domain, sample in (("day", 18), ("day", 23), ("rain", 14)):  # held out: day 18 to 23, rain 13 to 17
        overwrite(DomainIndex.open(tmp_path / "shards" / domain), sample, "image", b"spoiled")
    with job(ours("train", config, "--nproc", "2", "train.steps=4"), tmp_path / "log") as started:
        assert started.wait() == 0, started.output
    (record,) = read_lines(run / "metrics" / "eval.jsonl")
    assert record["left_out"] == {"day": 2, "rain": 1}
    assert "(3 bad samples left out)" in started.output
    for key in ("day_18", "day_23", "rain_14", "night_0", "night_8"):
        assert re.search(rf"left out of the evaluation of \w+ .* sample {key}:", started.output), key
    target = json.loads((run / "results.json").read_text())["targets"]["night"]
    assert (target["images"], target["left_out"]) == (5, 4)
    assert "5 (4 left out)" in (run / "report.html").read_text()
    assert re.search(r"^night +5 +4 ", started.output, re.MULTILINE), started.output


def test_too_many_bad_held_out_samples_end_every_rank(tmp_path: Path) -> None:
    _, config = setup(tmp_path, LENIENT | {"holdout": 0.25, "max_bad_ratio": 0.01})
    for sample in (18, 23):  # of the first and the last of two ranks
        overwrite(DomainIndex.open(tmp_path / "shards" / "day"), sample, "image", b"spoiled")
    processes = start_ranks(["train", config, "train.steps=2"], 2)
    outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [78, 78], outputs
    for output in outputs:
        assert "domain day: 2 of 6 samples are bad, 1 may be left out" in output
        assert "Traceback" not in output
