"""A data set is prepared to the same bytes by one process, several, several parts, and after kills."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ppar_dist.class_sets import class_set
from ppar_dist.data.prepare import Options, prepare, prepare_part
from ppar_dist.data.prepare.encoding import Encoder
from ppar_dist.data.prepare.known import SOURCES
from ppar_dist.data.prepare.pieces import PAIRS
from ppar_dist.data.prepare.source import Pair
from ppar_dist.data.shards.parts import Part
from ppar_dist.data.shards.writer import ShardSample, write_domain
from ppar_dist.errors import UserError

SKIP = Options(skip_bad=True)


@pytest.fixture(scope="module")
def root(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 frames of CamVid in two domains: some cut off, some without a label, one of a name in Chinese."""
    source, folder = real_data / "data" / "camvid", tmp_path_factory.mktemp("camvid")
    day, dusk = (sorted((source / "images").glob(f"{name}_*")) for name in ("0016E5", "0001TP"))
    images = day[:100] + dusk[:50]
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for number, image in enumerate(images):
        label = source / "labels" / f"{image.stem}.png"
        name = "0016E5_街道" if number == 70 else image.stem
        raw = image.read_bytes()
        (folder / "images" / f"{name}{image.suffix}").write_bytes(raw[: len(raw) // (1 + (number % 50 == 9))])
        if number % 60 != 31:
            shutil.copyfile(label, folder / "labels" / f"{name}.png")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def expected(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone")
    prepare("camvid", root, out, "roads6", SKIP)
    return files(out)


def test_the_shards_are_those_of_webdatasets_writer(root: Path, tmp_path: Path) -> None:
    source = SOURCES["camvid"]
    encode = Encoder("camvid", source.decoder(class_set("roads6")), None, None)
    prepare("camvid", root, tmp_path / "out", "roads6", SKIP)
    for name, pairs in source.parted(root).items():
        good = [p for p in pairs if p.label.is_file() and p.image.read_bytes().endswith(b"\xff\xd9")]
        write_domain(tmp_path / "theirs" / name, "roads6", map(encode, good))
        for path in (tmp_path / "theirs" / name).glob("*"):
            if path.name != "domain.json":
                assert path.read_bytes() == (tmp_path / "out" / name / path.name).read_bytes(), path


@pytest.mark.parametrize(("samples", "size"), [(7, 256e6), (256, 1e6), (50, 3e6)])
def test_shards_end_where_one_process_would_end_them(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int, size: float
) -> None:
    for module in ("prepare.assembling", "shards.writer"):
        monkeypatch.setattr(f"ppar_dist.data.{module}.SHARD_BYTES", size)
    monkeypatch.setattr("ppar_dist.data.prepare.assembling.SAMPLES_PER_SHARD", samples)
    options = Options(skip_bad=True, split_by="none")
    (made,) = prepare("camvid", root, tmp_path / "out", "roads6", options)
    encode = Encoder("camvid", SOURCES["camvid"].decoder(class_set("roads6")), None, None)
    (pairs,) = SOURCES["camvid"].parted(root, "none").values()
    good = [p for p in pairs if p.label.is_file() and p.image.read_bytes().endswith(b"\xff\xd9")]
    theirs = write_domain(tmp_path / "theirs", "roads6", map(encode, good), samples_per_shard=samples)
    assert len(theirs.shards) > 2
    for path in theirs.path.glob("*"):
        if path.name != "domain.json":
            assert path.read_bytes() == (made / path.name).read_bytes(), path


def test_parts_merged_give_the_bytes_of_one_process(
    root: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    told: list[str] = []
    for number in (3, 1):
        prepare_part("camvid", root, tmp_path / "out", "roads6", Part(number, 3), SKIP, tell=told.append)
    assert any("no label" in line for line in told)
    with pytest.raises(UserError, match=r"1 of 3 pieces are not there"):
        prepare("camvid", root, tmp_path / "out", "roads6", SKIP, merge=True)
    for number in (1, 2, 3):
        prepare_part("camvid", root, tmp_path / "out", "roads6", Part(number, 3), SKIP)
    prepare("camvid", root, tmp_path / "out", "roads6", SKIP, merge=True)
    assert files(tmp_path / "out") == expected


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("damage", [_flip, _cut, Path.unlink])
@pytest.mark.parametrize("kind", ["tar", "rows"])
def test_what_a_kill_damaged_is_made_again(
    root: Path, expected: dict[str, bytes], tmp_path: Path, damage: Callable[[Path], None], kind: str
) -> None:
    prepare_part("camvid", root, tmp_path / "out", "roads6", Part(1, 1), SKIP)
    damage(sorted((tmp_path / "out").glob(f".*.making/*.{kind}"))[-1])
    prepare("camvid", root, tmp_path / "out", "roads6", SKIP)
    assert files(tmp_path / "out") == expected


def test_a_pair_that_changed_is_worked_on_again_and_no_other(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "root"
    shutil.copytree(root, here)
    prepare_part("camvid", here, tmp_path / "out", "roads6", Part(1, 1), SKIP)
    (one, *_, other) = sorted((here / "labels").iterdir())
    other.write_bytes(one.read_bytes())  # another label of perhaps another size
    calls: list[Path] = []
    original = Encoder.__call__

    def counted(self: Encoder, pair: Pair) -> ShardSample:
        calls.append(pair.image)
        return original(self, pair)

    monkeypatch.setattr(Encoder, "__call__", counted)
    prepare("camvid", here, tmp_path / "out", "roads6", SKIP)
    assert 0 < len(calls) <= PAIRS
    prepare("camvid", here, tmp_path / "alone", "roads6", SKIP)
    assert files(tmp_path / "out") == files(tmp_path / "alone")


def test_bad_pairs_of_parts_are_refused_when_they_are_merged(
    root: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    prepare_part("camvid", root, tmp_path / "out", "roads6", Part(1, 1))
    with pytest.raises(UserError, match=r"bad pairs: 5; nothing was converted"):
        prepare("camvid", root, tmp_path / "out", "roads6", merge=True)
    assert not list((tmp_path / "out").glob("camvid_*"))
    prepare("camvid", root, tmp_path / "out", "roads6", SKIP, merge=True)
    assert files(tmp_path / "out") == expected


@pytest.mark.process
def test_processes_give_the_bytes_of_one(root: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    prepare("camvid", root, tmp_path / "out", "roads6", Options(skip_bad=True, processes=3))
    assert files(tmp_path / "out") == expected


@pytest.mark.process
def test_kills_leave_nothing_that_looks_complete(
    root: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ppar_dist", "prepare", "camvid", "--root", str(root), "--out", str(out)]
    command += ["--classes", "roads6", "--skip-bad", "--processes", "2"]
    chance = random.Random(5)
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not out.exists() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.uniform(0.1, 2.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for made in out.glob("camvid_*/domain.json"):  # that domain had come to its end
            names = [name for name in expected if name.startswith(made.parent.name)]
            assert all((out / name).read_bytes() == expected[name] for name in names)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert files(out) == expected
