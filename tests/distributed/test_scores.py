"""1 = N: a checkpoint has the same scores, in integers, on any number of real ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import (
    TIMEOUT_S,
    run_command,
    run_ranks,
    start_ranks,
    tiny_config,
    write_blocks_domain,
    write_config,
)

_TARGET = 19  # samples: for 1, 2 and 3 ranks, and more than a worker needs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2 ranks, which scored its target together when it ended."""
    root = tmp_path_factory.mktemp("scores")
    for seed, (name, samples) in enumerate((("left", 8), ("right", 4), ("night", _TARGET)), start=1):
        write_blocks_domain(root / name, samples, seed, rare_in=0)
    tree = tiny_config(root, root / "run", train={"steps": 2}, targets={"night": str(root / "night")})
    run_ranks(["train", str(write_config(root / "run.yaml", tree))], 2)
    return root / "run"


def target_of(run: Path) -> str:
    return f"night={run.parent / 'night'}"


def test_two_ranks_score_a_run_as_one_process_does(run: Path) -> None:
    at_the_end = json.loads((run / "results.json").read_text())
    done = run_command(
        ["evaluate", str(run / "checkpoints" / "step-00000002"), "--target", target_of(run), "--json"]
    )
    assert done.returncode == 0, done.stderr
    alone = json.loads(done.stdout)
    assert alone["targets"] == at_the_end["targets"]
    assert alone["protocol"] == at_the_end["protocol"]
    assert alone["targets"]["night"]["images"] == _TARGET
    shown = json.loads((run / "predictions" / "examples.json").read_text())
    assert [entry["key"] for entry in shown] == ["s0002", "s0007", "s0011", "s0016"]  # of both ranks
    assert all((run / "predictions" / entry["prediction"]).is_file() for entry in shown)


def test_three_ranks_share_batches_and_workers_as_one_process_does(run: Path, tmp_path: Path) -> None:
    options = [
        "--batch",
        "2",
        "--mode",
        "slide",
        "--crop",
        "32",
        "48",
        "--stride",
        "16",
        "32",
        "--flip",
        "--workers",
    ]
    line = [
        "evaluate",
        str(run / "checkpoints" / "step-00000002"),
        "--target",
        target_of(run),
        "--json",
        *options,
    ]
    done = run_command([*line, "0"])
    assert done.returncode == 0, done.stderr
    notes = tmp_path / "notes"
    notes.mkdir()
    ranks = start_ranks([*line, "1"], 3, PPAR_EXIT_NOTES=str(notes))
    try:
        outputs = [rank.communicate(timeout=TIMEOUT_S)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0, 0], outputs
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert table(outputs[0]) == json.loads(done.stdout)
    assert not any('"targets"' in output for output in outputs[1:])


def test_the_command_starts_ranks_and_passes_on_what_is_wrong(run: Path) -> None:
    line = [
        "evaluate",
        str(run),
        "--target",
        target_of(run),
        "--size",
        "24x32",
        "--scale",
        "1",
        "--scale",
        "1.5",
    ]
    done = run_command([*line, "--nproc", "2", "--csv"])
    assert done.returncode == 0, done.stderr
    kept = json.loads((run / "results.json").read_text())
    assert [each["protocol"] for each in kept["protocols"]] == [
        "within 24x32, whole, scales 1 1.5, labels at their own size"
    ]
    assert "within 24x32, whole, scales 1 1.5" in done.stdout
    wrong = run_command(["evaluate", str(run), "--target", "night=nowhere", "--nproc", "2"])
    assert wrong.returncode == 78, wrong.stdout + wrong.stderr
    assert "nowhere" in wrong.stdout + wrong.stderr


def table(output: str) -> Any:
    """The JSON among what rank 0 printed."""
    return json.loads(output[output.index("{\n") : output.rindex("}") + 1])
