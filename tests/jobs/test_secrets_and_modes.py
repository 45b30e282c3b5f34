"""What a whole job leaves behind and says: no secret of its environment, nothing that others may change."""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.faults.jobs import job, ours, tiny_run
from tests.ranks import encode, run_command, tiny_config, write_config

SECRETS = {
    name: f"secret-{number}-of-{name.lower()}"
    for number, name in enumerate(
        ("FAKE_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "PIP_INDEX_URL", "NCCL_FAKE_KEY")
    )
}
SECRETS["HTTPS_PROXY"] = "http://user:secret-of-the-proxy@127.0.0.1:9"
HOSTILE = "\x1b]0;owned\x07\u202e\x9b2J\n"
OBEYED = ("\x1b", "\x07", "\u202e", "\x9b")
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


def write_hostile_shard(folder: Path) -> Path:
    """A tar of another's making: keys that hold what a terminal would obey, and one image cut short."""
    label = encode(np.zeros((64, 96), np.uint8), "PNG")
    image = encode(np.zeros((64, 96, 3), np.uint8), "JPEG")
    folder.mkdir()
    shard = folder / f"shard-0000{HOSTILE}.tar"
    with tarfile.open(shard, "w") as archive:
        for number in range(8):
            photo = image[:40] if number in (1, 7) else image
            for suffix, content in (("jpg", photo), ("png", label), (f"txt{HOSTILE}", b"")):
                member = tarfile.TarInfo(f"s{number}{HOSTILE if number < 2 else ''}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return shard


def test_names_from_shards_reach_no_terminal_raw(tmp_path: Path) -> None:
    """Indexed, inspected, examined and trained on; the bad sample is told of."""
    shard = write_hostile_shard(tmp_path / "left")
    data = {"max_bad_ratio": 1.0, "sources": ["left"]}
    tree = tiny_config(tmp_path, tmp_path / "run", train={"steps": 3}, data=data)
    config = str(write_config(tmp_path / "config.yaml", tree))
    said = ""
    for arguments in (
        ["index", str(tmp_path / "left"), "--classes", "roads6"],
        ["index", str(tmp_path / "left"), "--classes", "roads6", "--max-bad-ratio", "1"],
        ["inspect", str(shard)],
        ["train", config],
        ["doctor", str(tmp_path / "run")],
    ):
        done = run_command(arguments)
        output = done.stdout + done.stderr
        said += f"$ {arguments[0]}: {done.returncode}\n{output}"
        raw = [sign for sign in OBEYED if sign in output]
        assert raw == [], (arguments, output)
    assert "owned" in said  # the names were shown, written out
    assert "$ train: 0" in said, said
