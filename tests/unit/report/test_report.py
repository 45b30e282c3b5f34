from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from ppar_dist.checkpoint import list_checkpoints
from ppar_dist.config.load import dump_config
from ppar_dist.errors import UserError
from ppar_dist.evaluation.evaluate import evaluate
from ppar_dist.evaluation.prototypes import final_cosines
from ppar_dist.report import TEMPLATE, write_report
from ppar_dist.report.charts import Series, Span, bar_chart, bin_mean, line_chart, matrix_chart, ticks
from ppar_dist.report.cleaning import label_meanings
from ppar_dist.report.records import RunRecords
from ppar_dist.report.thinning import Thinned
from ppar_dist.report.timeline import planned_stages, stage_list, timeline
from tests.unit.tiny_run import CLASSES, make_domain, make_run

NASTY = "</td><script>alert(1)</script>"


class Page(HTMLParser):
    """Tags, their attributes and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def log_run(run: Path) -> None:
    """Metric files as the trainer writes them, the last line cut off."""
    metrics = run / "metrics"
    metrics.mkdir(exist_ok=True)
    train, samples = [], []
    for step in range(1, 41):
        progress = step / 40
        stage = sum(progress >= boundary for boundary in (0.1, 0.3, 0.5))
        record: dict[str, Any] = {"step": step, "samples_seen": 4 * step, "stage": stage, "ess_ratio": 0.9}
        record |= {"loss/total": 2 - progress, "loss/segmentation": 1.5 - progress, "domain_discrepancy": 0.4}
        record |= {"lr/decoder": 1e-3 * (1 - progress), "grad_norm": 1 + progress}
        if stage:
            record |= {"loss/text": None if step == 20 else 1.0}
        record |= {
            f"prototype_text_similarity/{name}": 0.5 + k / 20 for k, name in enumerate(CLASSES.classes)
        }
        record |= {f"prototype_drift/{name}": 0.01 for name in CLASSES.classes}
        train.append(json.dumps(record))
        rows = []
        for slot in range(4):
            sample = (4 * step + slot) % 5
            value = -1.0 - sample
            rows.append({"domain": "ab"[slot % 2], "sample": sample, "key": f"s{sample:03d}"})
            rows[-1] |= {"weight": 0.5 + sample / 4, "reliability": value, "position": 4 * step + slot}
        samples.append(json.dumps({"step": step, "samples": rows}))
    (metrics / "train.jsonl").write_text("\n".join(train) + '\n{"step": 41, "lo')
    (metrics / "samples.jsonl").write_text("\n".join(samples) + "\n")
    evals = [{"step": step, "miou": step / 100, "domains": {"a": step / 100, "b": None}} for step in (20, 40)]
    evals[0]["confusion"] = [[1] * 6] * 6
    evals[1]["confusion"] = [[70 + k if k == j else 6 for j in range(6)] for k in range(6)]
    (metrics / "eval.jsonl").write_text("\n".join(map(json.dumps, evals)) + "\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    make_run(root / "shards", root / "run")
    make_domain(root / "shards" / "night", 3, 9)
    log_run(root / "run")
    results = evaluate(
        root / "run", {"night": root / "shards" / "night"}, examples=root / "run" / "predictions"
    )
    results.write(root / "run" / "results.json")
    return root / "run"


def test_the_page_is_whole_and_needs_nothing_else(run: Path) -> None:
    path = write_report(run)
    text = path.read_text()
    page = Page(text)
    assert path == run / "report.html"
    for _, attributes in page.tags:
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
        assert "href" not in attributes
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert page.text.count("not recorded") == 2  # the admitted ratio and the speed, which this log lacks
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(svg)  # well-formed


def test_the_table_holds_what_results_json_holds(run: Path) -> None:
    page = Page(write_report(run).read_text())
    target = json.loads((run / "results.json").read_text())["targets"]["night"]
    for value in (target["miou"], target["pixel_accuracy"], target["iou"]["road"]):
        assert f"{100 * value:.1f}" in page.text


def tiles_of(run: Path) -> list[str]:
    text = write_report(run).read_text()
    return [re.sub(r"<[^>]+>", " ", tile).strip() for tile in re.findall(r'<div class="tile.*?</div>', text)]


def test_speed_is_shown_where_it_was_recorded(run: Path, tmp_path: Path) -> None:
    shown = " ".join(tiles_of(run))
    assert not any(name in shown for name in ("goodput", "images per second", "MFU", "GiB"))
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    train = [json.loads(line) for line in (copy / "metrics" / "train.jsonl").read_text().splitlines()[:-1]]
    for record, speed in zip(train, [100.0] * 5 + [1500.0] * 35, strict=True):  # the first steps are slow
        record |= {"images_per_second": speed, "mfu": speed / 5000, "device_memory_peak": 1 << 30}
    train[-1]["device_memory_peak"] = 5 << 29
    (copy / "metrics" / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in train))
    times = [(1000.0, 0, 0), (1100.0, 40, 75.0), (1150.0, 20, 0), "junk", (1200.0, 30, 50.0)]
    lines = [
        dict(zip(("time", "step", "seconds"), item, strict=True)) if item != "junk" else {} for item in times
    ]
    (copy / "metrics" / "time.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = tiles_of(copy)
    for tile in ("25.0  % goodput", "1 500.0  images per second, median", "30.0  % MFU, median"):
        assert tile in found
    assert "2.5  GiB of the first GPU at most" in found


def test_pictures_decode_and_show_the_labels(run: Path) -> None:
    page = Page(write_report(run).read_text())
    images = [a for tag, a in page.tags if tag == "img"]
    labels = [a["src"] for a in images if (a["alt"] or "").startswith("label of ")]
    assert len(labels) >= 3
    for attributes in images:
        raw = base64.b64decode((attributes["src"] or "").partition(",")[2])
        with Image.open(io.BytesIO(raw)) as picture:
            picture.load()
    with Image.open(io.BytesIO(base64.b64decode((labels[0] or "").partition(",")[2]))) as picture:
        shown = set(np.unique(np.asarray(picture)))
    assert shown <= {0, 1, 2, 3, 4, 255}
    assert len(shown) > 3


def test_least_reliable_samples_come_first(run: Path) -> None:
    text = Page(write_report(run).read_text()).text
    least, most = text.split("Least reliable")[1].split("Most reliable")
    assert re.findall(r"s00\d", least)[0] == "s004"  # reliability -1 - sample
    assert re.findall(r"s00\d", most)[0] == "s000"
    assert "\N{MINUS SIGN}5.00" in least


def test_the_confusion_is_that_of_the_last_evaluation(run: Path, tmp_path: Path) -> None:
    text = write_report(run).read_text()
    assert "<title>road, road: 70</title>" in text  # of 100 pixels
    assert "<title>road, sky: 6</title>" in text
    counts = json.loads((run / "results.json").read_text())["targets"]["night"]["confusion"]
    assert f"<title>road, road: {100 * counts[0][0] / sum(counts[0]):.0f}</title>" in text
    make_run(tmp_path / "shards", tmp_path / "run", steps=())
    metrics = tmp_path / "run" / "metrics"
    metrics.mkdir()
    for wrong in ([[1, 2], [3]], [["<b>"] * 6] * 6, [[1] * 7] * 6, {"a": 1}, [[-1] * 6] * 6):
        (metrics / "eval.jsonl").write_text(json.dumps({"step": 1, "miou": 0.1, "confusion": wrong}))
        assert "<h2>Confusion</h2>" not in write_report(tmp_path / "run").read_text()


def test_all_stages_are_named_also_those_that_a_short_run_skips(run: Path, tmp_path: Path) -> None:
    named = [(each["name"], each["steps"]) for each in stage_list(RunRecords.read(run))]
    assert named == [
        ("warm-up", "steps 1 to 4, done"),
        ("text", "steps 5 to 12, done"),
        ("visual text", "steps 13 to 20, done"),
        ("pixel", "steps 21 to 40, done"),
    ]
    make_run(tmp_path / "shards", tmp_path / "run", steps=(), train={"steps": 3, "global_batch": 4})
    page = Page(write_report(tmp_path / "run").read_text())
    short = stage_list(RunRecords.read(tmp_path / "run"))
    assert [each["steps"].partition(":")[0] for each in short].count("skipped") == 1
    assert all(f"{each['number']} {each['name']}" in page.text for each in short)


def test_two_runs_stand_beside_each_other(run: Path, tmp_path: Path) -> None:
    config = make_run(tmp_path / "shards", tmp_path / "run", steps=(), optim={"lr": 0.5})
    named = config.model_copy(update={"run": config.run.model_copy(update={"name": NASTY})})
    (tmp_path / "run" / "config.yaml").write_text(dump_config(named))
    log_run(tmp_path / "run")
    target = {"miou": 0.125, "images": 1, "iou": {}}
    protocol = json.loads((run / "results.json").read_text())["protocol"]
    results = {"targets": {"night": target}, "protocol": "another"}
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    assert "different protocols" in Page(write_report(run, tmp_path / "run").read_text()).text
    results["protocol"] = protocol
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    page = Page(write_report(run, tmp_path / "run").read_text())
    ours = json.loads((run / "results.json").read_text())["targets"]["night"]["miou"]
    assert f"Against {NASTY}" in page.text
    assert "different protocols" not in page.text
    assert "optim.lr: 0.5 -> 0.001" in page.text
    assert f"{100 * (ours - 0.125):+.1f}".replace("-", "−") in page.text
    assert "script" not in [tag for tag, _ in page.tags]
    with pytest.raises(UserError, match="is not a run"):
        write_report(run, tmp_path)
    write_report(run)


def test_examples_keep_their_size_while_there_is_room(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def widths() -> set[int]:
        text = write_report(copy).read_text()
        found = re.findall(r'class="zoom">.*?src="data:image/\w+;base64,([^"]+)"', text)
        return {Image.open(io.BytesIO(base64.b64decode(uri))).width for uri in found}

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for file in (copy / "predictions").glob("*.[pj][np]g"):
        with Image.open(file) as picture:
            large = picture.resize((900, 600), Image.Resampling.NEAREST)
        large.save(file)
    assert widths() == {900}
    monkeypatch.setattr("ppar_dist.report.images._ROOM", 0)
    assert widths() == {420}


def test_stage_bands_follow_the_log(run: Path) -> None:
    records = RunRecords.read(run)
    assert records.unreadable == 1
    text = write_report(run).read_text()
    assert "visual text</text>" in text
    assert "1 unreadable record" in text


def test_prototypes_of_the_checkpoint(run: Path) -> None:
    cosines = final_cosines(run, RunRecords.read(run).config)
    checkpoint = list_checkpoints(run)[-1]
    state, text = (
        load_file(checkpoint / "ppar.safetensors"),
        load_file(checkpoint / "model.safetensors")["text"],
    )
    assert cosines is not None
    vectors = []
    for k in range(6):  # v_k = norm((1-a) t_k + a norm(mean over domains of the unit centroids))
        centroids = [row[k].double() / row[k].double().norm() for row in state["bank.sums"]]
        mean = sum(centroids) / len(centroids)
        alpha = 0.5 * (1 - math.exp(-float(state["bank.cells_total"][:, k].sum()) / 2000))
        vector = (1 - alpha) * text[k].double() + alpha * mean / mean.norm()
        vectors.append(vector / vector.norm())
    expected = torch.stack(vectors) @ torch.stack(vectors).T
    assert torch.allclose(torch.tensor(cosines, dtype=torch.float64), expected, atol=1e-5)


def test_a_bare_run_says_what_is_missing(tmp_path: Path) -> None:
    make_run(tmp_path / "shards", tmp_path / "run", steps=())
    page = Page(write_report(tmp_path / "run").read_text())
    assert page.text.count("not recorded") >= 9


def test_the_baseline_shows_no_stages(tmp_path: Path) -> None:
    make_run(tmp_path / "shards", tmp_path / "run", steps=(), ppar={"enabled": False})
    log_run(tmp_path / "run")
    text = write_report(tmp_path / "run").read_text()
    assert "plain fine-tuning (PPAR off)" in text
    assert "visual text" not in text
    assert "Sample weights" not in text
    assert "PPAR was off" in text
    assert 'span-odd"' not in text


def test_names_from_shards_cannot_break_the_page(run: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "shards", tmp_path / "run", steps=())
    metrics = tmp_path / "run" / "metrics"
    metrics.mkdir()
    row = {"domain": NASTY, "sample": 1, "key": NASTY, "weight": 1.0, "reliability": -1.0}
    (metrics / "samples.jsonl").write_text(json.dumps({"step": 1, "samples": [row]}) + "\n")
    (metrics / "eval.jsonl").write_text(
        json.dumps({"step": 1, "miou": 0.1, "domains": {NASTY: 0.1, "b": 0.2}})
    )
    entry = {"target": NASTY, "key": NASTY, "image": "../../../config.yaml"}
    (tmp_path / "run" / "predictions").mkdir()
    (tmp_path / "run" / "predictions" / "examples.json").write_text(json.dumps([entry]))
    (tmp_path / "run" / "results.json").write_text("{")
    text = write_report(tmp_path / "run").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_a_very_long_run_gives_a_page_of_bounded_size(run: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "shards", tmp_path / "run", steps=())
    metrics = tmp_path / "run" / "metrics"
    metrics.mkdir()
    for name, steps in (("train", 41_000), ("eval", 41_000), ("events", 5_000)):
        with (metrics / f"{name}.jsonl").open("w") as file:
            for step in range(1, steps + 1):
                record: dict[str, Any] = {"step": step}
                record |= {"train": {"loss/total": 1.0, "stage": 3}, "events": {}}.get(
                    name, {"miou": 0.5, "domains": {"a": 0.4, "b": 0.6}}
                )
                record |= {"time": 1e9, "kind": "stopped", "text": f"text {step}"} if name == "events" else {}
                file.write(json.dumps(record) + "\n")
    page = write_report(tmp_path / "run")
    assert page.stat().st_size < 400_000
    text = page.read_text()
    assert "41000 of 40 steps" not in text  # the plan's length is the configuration's
    for shown in ("text 100<", "text 4901<", "4800 more are in metrics/events.jsonl"):
        assert shown in text
    assert "text 101<" not in text
    assert len(RunRecords.read(tmp_path / "run").train) <= 20_001


def test_thinning_is_even_and_keeps_the_newest() -> None:
    thinned: Thinned[list[int]] = Thinned(100, len)
    for step in range(1, 1001):
        thinned.put(step, [step] * 3)
    thinned.put(1000, [-1])  # once more: the later counts
    steps = [value[0] for value in thinned.values()]
    gaps = {b - a for a, b in pairwise(steps[:-1])}
    assert gaps == {thinned.stride}
    assert steps[-1] == -1
    assert len(steps) <= 34
    few: Thinned[str] = Thinned(10)
    for step, value in ((2, "b"), (1, "a"), (2, "c")):
        few.put(step, value)
    assert list(few.values()) == ["a", "c"]


def test_the_timeline_shows_the_plan_and_what_is_done(run: Path, tmp_path: Path) -> None:
    config = make_run(
        tmp_path / "shards", tmp_path / "run", steps=(), train={"steps": 100, "global_batch": 4}
    )
    assert [(number, span.start, span.end) for number, span in planned_stages(config)] == [
        (0, 0, 10),
        (1, 10, 30),
        (2, 30, 50),
        (3, 50, 100),
    ]
    log_run(tmp_path / "run")
    events = [
        {"time": 1e9, "kind": kind, "step": 20, "text": NASTY} for kind in ("resumed", "stopped", NASTY)
    ]
    lines = "\n".join(map(json.dumps, events))
    (tmp_path / "run" / "metrics" / "events.jsonl").write_text(lines + "\n")
    chart = ElementTree.fromstring(str(timeline(RunRecords.read(tmp_path / "run"))))
    assert "40 of 100 steps done" in chart.attrib["aria-label"]
    blocks = [item.attrib for item in chart if item.tag == "rect"]
    widths = {item["class"]: float(item["width"]) for item in blocks}
    assert widths["stage done stage-1"] == widths["stage planned stage-1"]
    assert widths["stage done stage-2"] == pytest.approx(widths["stage planned stage-2"] / 2, abs=1)
    assert "stage done stage-3" not in widths
    assert [item.attrib["class"] for item in chart if item.tag == "path"] == ["mark resume", "mark fault"]


def colour_schemes() -> list[dict[str, str]]:
    """The page's colours by name, light and dark."""
    found = re.findall(r":root \{\n?(.*?)\}", TEMPLATE.read_text(), re.S)[:2]
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part)) for part in found]


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2 defines it: 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out(scheme: int) -> None:
    colours = colour_schemes()[scheme]
    for ground in ("page", "card", "span-even", "span-odd"):
        for name in ("ink", "soft", "accent", "warn", "second"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for name in ("third", "context"):  # lines
            least = 3.0 if ground == "card" else 2.5
            assert contrast(colours[name], colours[ground]) >= least, (name, ground)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run: no config\.yaml"):
        write_report(tmp_path)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_inside(low: float, span: float) -> None:
    high = low + span
    found = ticks(low, high)
    slack = 1e-6 * (abs(low) + span)
    assert len(found) <= 8
    assert all(low - slack <= value <= high + slack for value in found)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=300), st.integers(1, 50))
def test_binning_keeps_the_range_and_drops_nothing_finite(values: list[float], points: int) -> None:
    x = [float(i) for i in range(len(values))]
    steps, means = bin_mean([*x, 1.0], [*values, math.nan], points)
    assert len(means) <= points
    assert min(values) - 1e-9 <= min(means) <= max(means) <= max(values) + 1e-9
    assert steps == sorted(steps)


def test_charts_survive_flat_single_and_empty_data() -> None:
    for values in ([1.0], [0.0, 0.0], [-2.0, -2.0]):
        steps = [float(i) for i in range(len(values))]
        chart = line_chart([Series("x", steps, values)], title="t", spans=[Span("s", 0, 0)])
        ElementTree.fromstring(str(chart))
        assert "nan" not in chart
    assert "not recorded" in line_chart([Series("x", [], [])], title="t")
    bars = ElementTree.fromstring(str(bar_chart([0.5, math.nan, -0.2], ["a", "b", "c"], title="t")))
    assert len([item for item in bars if item.tag == "rect"]) == 2
    ElementTree.fromstring(str(matrix_chart([[1.0, -0.3], [-0.3, 1.0]], ["a<b", "c&d"], title="t")))


def test_meanings_of_labels_are_read_where_they_are_figures() -> None:
    value = {
        "may_be": {"india": {"car": {"car": 1.0, "building": "0.2"}, "sky": 3, "road": {}}, "facades": []}
    }
    assert label_meanings(value) == [{"domain": "india", "label": "car", "classes": {"car": 1.0}}]
    for damaged in (None, [], {}, {"may_be": [1]}, {"may_be": None}):
        assert label_meanings(damaged) == []
