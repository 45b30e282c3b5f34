"""What a run keeps of its scores: by checkpoint, target and protocol, in JSON and CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from ppar_dist.errors import UserError
from ppar_dist.evaluation.evaluate import evaluate, score
from ppar_dist.evaluation.results import Results, TargetResult, keep_results
from ppar_dist.report.cleaning import results_table
from tests.unit.tiny_run import make_domain, make_run

OWN, OTHER = "shorter side 16, whole, labels at their own size", "images as they are, whole"


def keep(file: Path, protocol: str, step: int, **miou: float | None) -> dict[str, Any]:
    targets = {name: TargetResult(name, 1, value, value, {"road": value}) for name, value in miou.items()}
    results = Results("r", f"step-{step:08d}", step, ("road",), targets, protocol)
    keep_results(file, results, own=OWN, before=OWN)
    return json.loads(file.read_text())


def lines(file: Path) -> list[dict[str, str]]:
    with file.with_suffix(".csv").open(newline="") as text:
        return list(csv.DictReader(text))


def scores(table: dict[str, Any]) -> dict[str, Any]:
    return {name: item["miou"] for name, item in table["targets"].items()}


def test_two_protocols_of_a_checkpoint_do_not_replace_each_other(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    keep(file, OTHER, 4, dusk=0.1)
    found = keep(file, OWN, 4, dusk=0.2, fog=0.4)
    assert (found["protocol"], scores(found)) == (OWN, {"dusk": 0.2, "fog": 0.4})
    assert [(table["protocol"], scores(table)) for table in found["protocols"]] == [(OTHER, {"dusk": 0.1})]
    assert results_table(found)["protocol"] == OWN
    found = keep(file, OTHER, 4, fog=0.3)
    assert (found["protocol"], found["mean_miou"]) == (OWN, pytest.approx(0.3))
    assert scores(found["protocols"][0]) == {"dusk": 0.1, "fog": 0.3}
    assert found["protocols"][0]["mean_miou"] == pytest.approx(0.2)
    found = keep(file, OTHER, 8, dusk=0.5)
    assert (found["step"], found["protocol"]) == (8, OTHER)
    assert "protocols" not in found
    assert [(table["step"], table["protocol"]) for table in found["earlier"]] == [(4, OWN), (4, OTHER)]
    kept = {(line["step"], line["protocol"], line["target"]): line["miou"] for line in lines(file)}
    assert kept == {
        ("8", OTHER, "dusk"): "0.5",
        ("4", OWN, "dusk"): "0.2",
        ("4", OWN, "fog"): "0.4",
        ("4", OTHER, "dusk"): "0.1",
        ("4", OTHER, "fog"): "0.3",
    }


def test_another_domain_of_a_name_replaces_no_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def keep_dusk(domain: str, miou: float, data: str = "x") -> dict[str, float]:
        target = TargetResult(domain, 1, miou, miou, {}, fingerprint=data)
        keep_results(file, Results("r", "step-00000004", 4, (), {"dusk": target}, OWN), own=OWN)
        return scores(json.loads(file.read_text()))

    file = tmp_path / "results.json"
    keep_dusk("camvid", 0.1)
    assert keep_dusk("facade", 0.2) == {"dusk": 0.2, "dusk@camvid": 0.1}
    assert "target dusk was domain camvid before, and is facade now" in caplog.text
    assert "the score before is kept as dusk@camvid" in caplog.text
    assert keep_dusk("camvid", 0.3) == {"dusk": 0.3, "dusk@facade": 0.2}
    assert sorted(line["target"] for line in lines(file)) == ["dusk", "dusk@facade"]
    caplog.clear()
    assert keep_dusk("camvid", 0.4) == {"dusk": 0.4, "dusk@facade": 0.2}
    assert not caplog.text
    assert keep_dusk("camvid", 0.5, data="y") == {"dusk": 0.5, "dusk@facade": 0.2}
    assert "the data of target dusk have changed" in caplog.text


def test_a_table_of_an_earlier_version_has_the_protocol_it_was_made_by(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    old = {"domain": "fog", "images": 1, "miou": 0.1, "pixel_accuracy": 0.1, "iou": {}}
    file.write_text(
        json.dumps({"run": "r", "checkpoint": "step-00000004", "step": 4, "targets": {"fog": old}})
    )
    found = keep(file, OWN, 4, dusk=0.2)
    assert scores(found) == {"fog": 0.1, "dusk": 0.2}
    assert "protocols" not in found


def test_csv_and_json_hold_the_same_figures(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    keep(file, OWN, 4, **{'a, "b"\nc': 0.25, "none": None})
    strange, none = lines(file)
    assert (strange["target"], strange["miou"], strange["iou road"]) == ('a, "b"\nc', "0.25", "0.25")
    assert (none["miou"], none["iou road"], none["run"], none["checkpoint"]) == ("", "", "r", "step-00000004")


def test_the_mean_leaves_out_what_was_trained_on_and_what_has_no_figure() -> None:
    def target(miou: float | None, trained_on: bool = False) -> TargetResult:
        return TargetResult("d", 1, miou, miou, {}, trained_on=trained_on)

    targets = {"a": target(0.2), "b": target(0.6), "c": target(None), "d": target(0.9, trained_on=True)}
    assert Results("r", "c", 1, (), targets).mean_miou() == pytest.approx(0.4)
    assert Results("r", "c", 1, (), {"d": targets["d"]}).mean_miou() is None
    assert "mean" not in Results("r", "c", 1, (), {"a": targets["a"]}).table()


def test_a_run_is_scored_by_its_section_and_by_options(tmp_path: Path) -> None:
    """The section's protocol has the file, also where it was asked for last."""
    make_run(tmp_path, tmp_path / "run", evaluation={"size": 12})
    night = {"night": make_domain(tmp_path / "night", 3, seed=9).path}
    score(tmp_path / "run", night, options={"size": 24, "flip": True})
    assert not (tmp_path / "run" / "predictions").exists(), "pictures are of the run's own protocol"
    own = score(tmp_path / "run", night)
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["protocol"] == own.protocol == "shorter side 12, whole, labels at their own size"
    (other,) = found["protocols"]
    assert other["protocol"] == "shorter side 24, whole, flipped too, labels at their own size"
    assert other["targets"]["night"]["iou"] != found["targets"]["night"]["iou"]


@pytest.mark.parametrize(
    "options", [{"batch": 3}, {"mode": "slide", "crop": (16, 24), "stride": (8, 16), "batch": 2}]
)
def test_in_batches_the_scores_are_those_of_one_by_one(tmp_path: Path, options: dict[str, Any]) -> None:
    """Rounding may differ in a batch; labels change where two logits are equal to the last bits."""
    make_run(tmp_path, tmp_path / "run")
    night = {"night": make_domain(tmp_path / "night", 7, seed=9).path}
    together = evaluate(tmp_path / "run", night, options=options).targets["night"]
    alone = evaluate(tmp_path / "run", night, options={**options, "batch": 1}).targets["night"]
    assert together.images == alone.images == 7
    assert together.iou == pytest.approx(alone.iou, abs=1e-3)


def test_labels_at_test_size_are_judged_there(tmp_path: Path) -> None:
    make_run(tmp_path, tmp_path / "run")
    night = {"night": make_domain(tmp_path / "night", 2).path}
    result = evaluate(tmp_path / "run", night, options={"labels": "test"})
    assert result.targets["night"].fingerprint
    assert result.protocol.endswith("labels at test size")
    assert result.targets["night"].miou is not None


def test_options_and_targets_are_refused_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path, tmp_path / "run")
    night = {"night": make_domain(tmp_path / "night", 2).path}
    monkeypatch.setattr("ppar_dist.evaluation.evaluate.read_segmentor", pytest.fail)
    for targets, options in (
        (night, {"size": 0}),
        (night, {"crop": (16, 16)}),
        ({"night": tmp_path / "nowhere"}, {}),
    ):
        with pytest.raises(UserError):
            evaluate(tmp_path / "run", targets, options=options)


def test_a_scale_that_leaves_no_cell_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path, tmp_path / "run")
    night = {"night": make_domain(tmp_path / "night", 2).path}
    with pytest.raises(UserError, match=r"at scale 0\.5 an image is seen at 20x30, and .* 32 pixels"):
        evaluate(tmp_path / "run", night, options={"size": 40, "scales": [1.0, 0.5]})
