"""Whatever has become of the files a run writes about itself: its report is a page, its log goes on."""

from __future__ import annotations

import io
import json
import logging
import math
import shutil
import struct
import tracemalloc
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ppar_dist.cli.parser import main
from ppar_dist.files import jsonl
from ppar_dist.files.jsonl import JsonLines, drop_after, parse_record
from ppar_dist.report import write_report
from ppar_dist.report.records import RunRecords
from tests.fuzz.budget import fuzzed, fuzzed_less
from tests.unit.report.test_report import log_run

TRAIN, EVAL, SAMPLES = "metrics/train.jsonl", "metrics/eval.jsonl", "metrics/samples.jsonl"
RESULTS, EXAMPLES = "results.json", "predictions/examples.json"
FILES = (TRAIN, EVAL, SAMPLES, RESULTS, EXAMPLES)
PICTURES = ("predictions/000-image.jpg", "predictions/000-label.png", "predictions/000-prediction.png")

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from((10**400, -(10**400), 1e308, -1e308, 5e-324, 2**53, -1, 4, "\ud800", "\0", "a", "road"))
    | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
HOSTILE = (
    *(
        b"",
        b"\n",
        b"\0",
        b"\xff\xfe{\0",
        b"\xef\xbb\xbf{}",
        b"null",
        b"1" * 5000,
        b'{"step": 1' + b"0" * 5000 + b"}",
    ),
    *(
        b"[" * 100_000,
        b'{"step":' * 2000,
        b'{"step": NaN}',
        b'{"step": 1e999}',
        b'{"step": true}',
        b'{"step": -1}',
    ),
    *(
        b'{"step": 1, "stage": 1e999, "loss/total": 1e999}',
        b'{"step": 1, "x": "\\ud800"}',
        b'{"step": 1}',
        b"{}",
    ),
)


CONFIG = {
    "data": {"root": "gone", "classes": "roads6", "sources": ["a", "b"]},
    "model": {"backbone": {"kind": "open_clip"}},
    "train": {"steps": 40, "global_batch": 4},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every file that the report reads, but no checkpoint."""
    root = tmp_path_factory.mktemp("records")
    (root / "run").mkdir()
    (root / "run" / "config.yaml").write_text(json.dumps(CONFIG | {"run": {"dir": "run"}}))
    log_run(root / "run")
    lines = (root / "run" / TRAIN).read_text().splitlines()[:-1]  # whole: without the line cut off
    (root / "run" / TRAIN).write_text("\n".join(lines) + "\n")
    target = {
        "domain": "night",
        "images": 3,
        "miou": 0.5,
        "pixel_accuracy": 0.75,
        "iou": {"road": 0.5, "car": None},
    }
    results = {"run": "tiny", "checkpoint": "step-00000040", "step": 40, "targets": {"night": target}}
    (root / "run" / RESULTS).write_text(json.dumps(results))
    (root / "run" / "predictions").mkdir()
    for name in PICTURES:
        image = Image.linear_gradient("L").resize((24, 16))
        (image if "image" in name else image.convert("P")).save(root / "run" / name)
    names = {
        kind: Path(name).name for kind, name in zip(("image", "label", "prediction"), PICTURES, strict=True)
    }
    entry = {"target": "night", "key": "s000", "accuracy": 0.5, **names}
    (root / "run" / EXAMPLES).write_text(json.dumps([entry]))
    return root / "run"


@pytest.fixture(scope="module")
def run(whole: Path) -> Path:
    """A copy whose files the tests spoil."""
    return Path(shutil.copytree(whole, whole.with_name("spoiled")))


def restore(whole: Path, run: Path) -> None:
    for name in (*FILES, *PICTURES):
        (run / name).write_bytes((whole / name).read_bytes())


class Text(HTMLParser):
    """The text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(run: Path) -> str:
    page = write_report(run).read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    drawn = page.partition("<pre>")[0]
    assert not any(
        f'{sign}{word}"' in drawn or f",{word}" in drawn for sign in '"-' for word in ("nan", "inf")
    )
    return Text(page).text


@st.composite
def damage(draw: st.DrawFn) -> tuple[str, Any]:
    """A kind of damage and where it strikes, as shares of a file's length."""
    kind = draw(st.sampled_from(("cut", "flip", "flip", "insert", "replace", "value", "value", "value")))
    places = draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4))
    content = draw(st.sampled_from(HOSTILE) | st.binary(max_size=20)) if kind != "value" else draw(JSON)
    return kind, (places, content, draw(st.integers(1, 255)))


def spoil(raw: bytes, kind: str, how: Any) -> bytes:
    places, content, bits = how
    at = int(places[0] * len(raw))
    if kind == "cut":
        return raw[:at]
    if kind == "flip":
        changed = bytearray(raw)
        for place in places:
            changed[int(place * len(raw))] ^= bits
        return bytes(changed)
    if kind == "insert":
        return raw[:at] + content + raw[at:]
    if kind == "replace":
        return bytes(content)
    return replaced(raw, places, content)


def replaced(raw: bytes, places: list[float], value: Any) -> bytes:
    """One value within the JSON of one line, chosen by ``places``, replaced by another."""
    lines = raw.splitlines(keepends=True) if raw.count(b"\n") > 1 and raw.startswith(b'{"step') else [raw]
    number = int(places[0] * len(lines))
    box = {"": json.loads(lines[number])}
    node: Any = box
    key: Any = ""
    for place in places[1:]:
        inner = node[key]
        if not isinstance(inner, (dict, list)) or not inner:
            break
        node, key = (
            inner,
            (list(inner) if isinstance(inner, dict) else range(len(inner)))[int(place * len(inner))],
        )
    node[key] = value
    lines[number] = json.dumps(box[""]).encode() + b"\n"
    return b"".join(lines)


@fuzzed_less
@given(
    strokes=st.dictionaries(st.sampled_from((*FILES, *FILES, *PICTURES)), damage(), min_size=1, max_size=3)
)
def test_a_damaged_run_still_has_a_report(
    whole: Path, run: Path, strokes: dict[str, tuple[str, Any]]
) -> None:
    restore(whole, run)
    for name, (kind, how) in strokes.items():
        if name not in PICTURES or kind != "value":
            (run / name).write_bytes(spoil((run / name).read_bytes(), kind, how))
    records = RunRecords.read(run)
    assert 0 <= records.unreadable <= 10_000
    text = page_of(run)
    assert ("unreadable record" in text) == bool(records.unreadable)


def test_a_whole_run_has_nothing_unreadable(whole: Path) -> None:
    records = RunRecords.read(whole)
    assert records.unreadable == 0
    assert len(records.train) == 40
    assert len(records.samples) == 160
    assert page_of(whole).count("of labelled pixels right") == 1


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_loses_what_lies_behind_the_cut(
    whole: Path, run: Path, name: str, share: float
) -> None:
    restore(whole, run)
    raw = (whole / name).read_bytes()
    kept = raw[: int(share * len(raw))]
    (run / name).write_bytes(kept)
    before, after = RunRecords.read(whole), RunRecords.read(run)
    if name in (RESULTS, EXAMPLES):
        assert after.unreadable == 1
        return
    assert after.unreadable == (
        bool(kept) and not kept.endswith(b"\n") and parse_record(kept.splitlines()[-1]) is None
    )
    whole_lines = sum(parse_record(line) is not None for line in kept.splitlines())
    found = {TRAIN: after.train, EVAL: after.evals, SAMPLES: sorted({row.step for row in after.samples})}[
        name
    ]
    full = {TRAIN: before.train, EVAL: before.evals, SAMPLES: sorted({row.step for row in before.samples})}[
        name
    ]
    assert found == full[:whole_lines]


@pytest.mark.parametrize(
    ("name", "line", "unreadable"),
    [
        (TRAIN, {"step": 50, "stage": 7}, 1),
        (TRAIN, {"step": 50, "stage": -1}, 1),
        (TRAIN, {"step": 50, "samples_seen": "many", "loss/total": [1]}, 1),
        (TRAIN, {"step": 50, "loss/total": 10**400}, 1),
        (TRAIN, {"step": 50, "loss/total": None}, 0),
        (TRAIN, {"step": 10**30}, 1),
        (TRAIN, ["step"], 1),
        (EVAL, {"step": 50, "miou": "high", "domains": 3}, 1),
        (SAMPLES, {"step": 50, "samples": 3}, 1),
        (
            SAMPLES,
            {"step": 50, "samples": [None, {"domain": 1}, {"domain": "a", "key": "s", "sample": "x"}]},
            1,
        ),
        (SAMPLES, {"step": 50, "samples": [{"domain": "a", "key": "s", "sample": 1, "weight": None}]}, 0),
    ],
    ids=str,
)
def test_a_line_of_wrong_types_counts_once_and_leaves_the_rest(
    whole: Path, run: Path, name: str, line: Any, unreadable: int
) -> None:
    restore(whole, run)
    with (run / name).open("a") as file:
        file.write(json.dumps(line) + "\n")
    records = RunRecords.read(run)
    assert records.unreadable == unreadable
    assert [r for r in records.train if r["step"] <= 40] == RunRecords.read(whole).train
    page_of(run)


@pytest.mark.parametrize("moment", [1e30, -1e30, 3e11, 1e18, None, "noon", [1], 10**400])
def test_an_event_at_no_possible_time_is_shown_without_one(whole: Path, run: Path, moment: Any) -> None:
    restore(whole, run)
    event = {"time": moment, "kind": "resumed", "step": 5, "text": "from step 4"}
    (run / "metrics" / "events.jsonl").write_text(json.dumps(event) + "\n")
    assert "from step 4" in page_of(run)
    (run / "metrics" / "events.jsonl").unlink()


def test_the_command_writes_a_page_of_nothing_but_garbage(whole: Path, run: Path) -> None:
    for name in (*FILES, *PICTURES):
        (run / name).write_bytes(b"\xff{[\x00" * 99)
    (run / "report.html").unlink(missing_ok=True)
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").exists()
    restore(whole, run)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    pieces = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


@pytest.mark.parametrize(
    "picture",
    [
        png((b"IHDR", b"\0" * 5)),  # ValueError
        png((b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))),  # DecompressionBombError
        png((b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)), (b"ID\0T", b"")),
        b"",
    ],
    ids=["short header", "bomb", "bad chunk", "empty"],
)
def test_an_example_whose_picture_is_damaged_is_left_out(whole: Path, run: Path, picture: bytes) -> None:
    restore(whole, run)
    (run / PICTURES[1]).write_bytes(picture)
    assert "of labelled pixels right" not in page_of(run)


def test_an_example_whose_picture_has_no_possible_name_is_left_out(whole: Path, run: Path) -> None:
    restore(whole, run)
    for name in ("a\0b", "", "..", "x" * 5000):
        entry = json.loads((whole / EXAMPLES).read_text())[0] | {"label": name}
        (run / EXAMPLES).write_text(json.dumps([entry]))
        assert "of labelled pixels right" not in page_of(run)


def written(path: Path, steps: int) -> bytes:
    path.unlink(missing_ok=True)
    lines = JsonLines(path)
    for step in range(1, steps + 1):
        lines.write({"step": step, "loss": 1 / step})
    lines.close()
    return path.read_bytes()


@fuzzed
@given(stroke=damage(), step=st.integers(0, 12))
def test_a_log_opens_over_any_damage_and_keeps_the_whole_records_before_its_step(
    run: Path, stroke: tuple[str, Any], step: int
) -> None:
    path = run / "metrics" / "fuzzed.jsonl"
    raw = spoil(written(path, 10), *stroke)
    path.write_bytes(raw)
    drop_after(path, step)
    opened = JsonLines(path)
    opened.write({"step": step + 1})
    opened.close()
    expected = []
    for line in io.BytesIO(raw):
        record = parse_record(line)
        if line.endswith(b"\n") and record is not None and record["step"] <= step:
            expected.append(line)
    assert path.read_bytes() == b"".join(expected) + b'{"step": %d}\n' % (step + 1)
    assert [file.name for file in path.parent.glob("fuzzed*")] == ["fuzzed.jsonl"]


def test_what_is_dropped_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(written(path, 3) + b"null\n\xff\n" + b'{"step": 4, "lo')
    with caplog.at_level(logging.WARNING):
        drop_after(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    assert "lines that are not whole records were dropped: 3" in caplog.text


def test_an_endless_line_is_no_record_and_is_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "_LONGEST_LINE", 1 << 16)
    path = tmp_path / "train.jsonl"
    first = written(path, 1)
    path.write_bytes(first + b"x" * (8 << 20) + b"\n" + first.replace(b"1,", b"2,"))
    tracemalloc.start()
    try:
        drop_after(path, 5)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_rewrite_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    raw = written(path, 5)
    (tmp_path / "train.jsonl.kept").mkdir()  # in the way of the new file, as a full disk would be
    with pytest.raises(OSError, match="directory"):
        drop_after(path, 2)
    assert path.read_bytes() == raw


def test_figures_are_finite_or_none() -> None:
    assert parse_record(b'{"step": 1, "loss": NaN}') is None
    assert parse_record(b'{"step": 1, "loss": null}') == {"step": 1, "loss": None}
    assert math.isinf((parse_record(b'{"step": 1, "loss": 1e999}') or {})["loss"])  # cleaning leaves it out
