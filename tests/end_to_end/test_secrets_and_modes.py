"""What a whole job leaves behind and says: no secret of its environment, nothing that others may change."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ppar_dist.data.index import DomainIndex
from tests.faults.jobs import job, ours, tiny_run

SECRETS = {
    name: f"secret-{number}-of-{name.lower()}"
    for number, name in enumerate(
        ("FAKE_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "PIP_INDEX_URL", "NCCL_FAKE_KEY")
    )
}
SECRETS["HTTPS_PROXY"] = "http://user:secret-of-the-proxy@127.0.0.1:9"
PROGRAM = "import os, sys; os.umask(0o027); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


def below(folder: Path) -> Iterator[Path]:
    """The folder and everything in it."""
    yield folder
    yield from folder.rglob("*")


def test_a_job_keeps_secrets_and_modes(blocks: Path, tmp_path: Path) -> None:
    """Two ranks under the launcher, with logs, report, targets, checkpoints, quarantine and ledger."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    run, config = tiny_run(
        blocks,
        tmp_path,
        train={"steps": 6, "eval_every": 3, "ledger": True},
        data={"holdout": 0.3, "max_bad_ratio": 1.0},
        checkpoint={"every": 3},
        monitoring={"enabled": True, "port": 0},
        targets={"right": str(blocks / "right")},
    )
    command = ours("train", config, "--nproc", "2")
    command[1:1] = ["-c", PROGRAM]
    with job(command, tmp_path / "log", TMPDIR=str(temporary), **SECRETS) as started:
        assert started.wait() == 0, started.output
        output = started.output
    assert (run / "report.html").exists()
    for path in [path for path in below(run) if path.is_file()]:
        content = path.read_bytes()
        assert not [name for name, value in SECRETS.items() if value.encode() in content], path
    assert not [name for name, value in SECRETS.items() if value in output], output
    assert "secret-" not in output
    for path in below(run):
        wanted = 0o750 if path.is_dir() else 0o640
        assert oct(stat.S_IMODE(path.lstat().st_mode)) == oct(wanted), path
    assert [path for path in temporary.rglob("*") if stat.S_IMODE(path.lstat().st_mode) & 0o022] == []


def test_names_from_shards_reach_no_terminal_raw(tmp_path: Path) -> None:
    """A shard's keys, its members and its folder may hold what a terminal would obey."""
    from tests.ranks import encode, run_command, write_config, tiny_config  # noqa: I001
    from ppar_dist.data.shards import ShardSample, write_domain
    import numpy as np

    label = encode(np.zeros((64, 96), np.uint8), "PNG")
    image = encode(np.zeros((64, 96, 3), np.uint8), "JPEG")
    keys = [f"s{n}\x1b]0;owned\x07\u202e\x9b2J" for n in range(8)]
    for domain in ("left", "right"):
        samples = [ShardSample(key, image[:40] if n == 1 else image, label, {}) for n, key in enumerate(keys)]
        write_domain(tmp_path / domain, "roads6", samples)
    assert len(DomainIndex.open(tmp_path / "left")) == 8
    tree = tiny_config(tmp_path, tmp_path / "run", train={"steps": 2}, data={"max_bad_ratio": 1.0})
    config = str(write_config(tmp_path / "config.yaml", tree))
    shard = next((tmp_path / "left").glob("*.tar"))
    for arguments in (
        ["inspect", str(shard)],
        ["inspect", str(tmp_path / "left")],
        ["doctor", config],
        ["train", config],
        ["inspect", str(tmp_path / "run")],
        ["index", str(tmp_path / "left"), "--classes", "roads6", "--max-bad-ratio", "1"],
        ["index", str(tmp_path / "right"), "--classes", "roads6"],
    ):
        done = run_command(arguments)
        for raw in ("\x1b", "\x07", "\u202e", "\x9b"):
            assert raw not in done.stdout + done.stderr, (arguments, done.stdout + done.stderr)
    assert os.path.exists(tmp_path / "run" / "metrics" / "samples.jsonl")
