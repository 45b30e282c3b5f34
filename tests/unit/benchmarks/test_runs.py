"""Runs of benchmarks: what names their folder, what is judged, and how many steps take equal time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from benchmarks import runs as runs_module
from benchmarks.gain.__main__ import needed
from benchmarks.gain.equal_time import equal_steps, step_ratio
from benchmarks.gain.variants import EQUAL_TIME, PLAIN, VARIANTS
from benchmarks.judge import HELD_OUT, judge, read_counts, read_source, stack
from benchmarks.records import RECORD
from benchmarks.runs import Run, plan_run, provenance, run_all, source_trees
from benchmarks.streets import TRACK_KEYS, TRACKS
from ppar_dist.config.identity import determining
from ppar_dist.config.load import load_config
from ppar_dist.config.method_section import PparConfig
from ppar_dist.errors import UserError
from ppar_dist.evaluation.evaluate import evaluate
from tests.unit.tiny_run import make_config, make_domain, make_run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The configuration file of a tiny run whose sources are there."""
    make_run(tmp_path / "shards", tmp_path / "run", steps=())
    np.savez(tmp_path / "shards" / "gone.npz", names=np.array(["road"]), embeddings=np.ones((1, 8)))
    return tmp_path / "run" / "config.yaml"


def key(config: Path, *overrides: str, seed: int = 0) -> str:
    return plan_run("x", seed, config, config.parents[1] / "out", overrides).key


def test_a_key_is_what_determines_the_result(config: Path, tmp_path: Path) -> None:
    base = key(config)
    assert len(base) == 12
    assert key(config) == base
    same = ["monitoring.port=0", "data.workers=3", "train.log_every=1", "ppar.alignment.temperature=0.1"]
    assert key(config, *same) == base
    others = [
        key(config, "ppar.enabled=false"),
        key(config, "train.steps=41"),
        key(config, "data.sources=[{name: a, weight: 1}, {name: b, weight: 2}]"),
        key(config, seed=1),
    ]
    (tmp_path / "shards" / "gone.npz").write_bytes(b"other text")
    others.append(key(config))
    (tmp_path / "weights.pt").write_bytes(b"one")
    weights = f"model.backbone.pretrained={tmp_path / 'weights.pt'}"
    others.append(key(config, weights))
    (tmp_path / "weights.pt").write_bytes(b"two")
    others.append(key(config, weights))
    with pytest.raises(UserError, match=r"pretrained=missing\.pt is not a file; .*\$PPAR_WEIGHTS"):
        key(config, "model.backbone.pretrained=missing.pt")
    make_domain(tmp_path / "shards" / "a", 5, seed=9)
    others.append(key(config))
    assert len({base, *others}) == len(others) + 1


def test_data_and_weights_may_be_in_another_place(config: Path, tmp_path: Path) -> None:
    before = key(config)
    (tmp_path / "shards").rename(tmp_path / "moved")
    assert key(config, f"data.root={tmp_path}/moved", f"text.file={tmp_path}/moved/gone.npz") == before


def test_a_default_that_has_changed_is_refused_and_a_new_key_is_not(config: Path) -> None:
    run = plan_run("x", 0, config, config.parents[1] / "out", ())
    run.folder.mkdir(parents=True)

    def note(ppar: dict[str, object]) -> None:
        (run.folder / RECORD).write_text(json.dumps({"config": {"ppar": ppar}}))

    now = PparConfig().model_dump(mode="json")
    note({name: value for name, value in now.items() if name != "vtp"})  # vtp did not exist then
    plan_run("x", 0, config, config.parents[1] / "out", ())
    note(now | {"min_purity": 0.5})
    with pytest.raises(SystemExit, match=r"ppar\.min_purity was 0\.5, is 0\.75"):
        plan_run("x", 0, config, config.parents[1] / "out", ())


def test_judging_keeps_every_image_and_agrees_with_evaluate(tmp_path: Path) -> None:
    make_run(tmp_path / "shards", tmp_path / "run", steps=(40,))
    run, targets = tmp_path / "run", {"dusk": tmp_path / "shards" / "b"}
    assert judge(run, targets, "tree")
    counts = read_counts(run, "dusk")
    assert counts.shape == (5, 6, 6)
    with np.load(run / "judged" / "dusk.npz", allow_pickle=False) as found:
        assert found["keys"].tolist() == [f"b/s{i:03d}" for i in range(5)]
    (result,) = evaluate(run, targets).targets.values()
    iou = torch.from_numpy(counts.sum(0))
    assert result.pixel_accuracy == pytest.approx(float(iou.diagonal().sum() / iou.sum()))
    assert read_counts(run, HELD_OUT).shape == (2, 6, 6)  # the last of five images, of both sources
    assert stack([run, run], ["dusk"])["dusk"].shape == (2, 5, 6, 6)
    assert read_source(run, "dusk") == "tree"
    assert not judge(run, targets, "later tree")
    make_domain(tmp_path / "shards" / "b2", 3, seed=4)
    assert judge(run, {"dusk": tmp_path / "shards" / "b2"}, "later tree")
    assert read_counts(run, "dusk").shape == (3, 6, 6)
    assert read_source(run, "dusk") == "later tree"


class Stub:
    """In place of the training processes: what each ends with, by seed."""

    codes: ClassVar[dict[int, int]] = {}

    def wait(self, start: Callable[[], object]) -> tuple[int, float]:
        (seed,) = (int(word[5:]) for word in start() if word.startswith("seed="))
        return self.codes[seed], 7.5

    def end(self) -> None:
        """There is nobody to end."""


def test_a_run_that_fails_is_named_and_tried_again_and_the_others_are_finished(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runs_module, "Children", Stub)
    monkeypatch.setattr(runs_module.subprocess, "Popen", lambda command, **_: command)
    monkeypatch.setattr(runs_module, "judge", lambda *_: False)
    planned = [plan_run("x", seed, config, tmp_path / "out", ()) for seed in (0, 1, 1)]
    Stub.codes = {0: 70, 1: 0}
    (problem,) = run_all(planned, {}, parallel=2)
    assert problem.startswith("x, seed 0: training ended with 70 (")
    assert [run.is_finished for run in planned] == [False, True, True]
    assert planned[1].cpu_seconds() == 7.5
    assert (
        len(json.loads((planned[1].folder / RECORD).read_text())["attempts"]) == 1
    )  # once, though named twice
    Stub.codes = {0: 0}  # the other one is not started again
    assert run_all(planned, {}, parallel=2) == []
    assert planned[0].is_finished
    assert planned[0].cpu_seconds() is None


def make_timed(folder: Path, seed: int, steps: int, cpu: list[float | None], source: str = "tree") -> Run:
    config = make_config(folder, folder, train={"steps": steps, "global_batch": 4})
    folder.mkdir(parents=True)
    attempts = [{"source": source, "cpu_s": seconds} for seconds in cpu]
    record = {"attempts": attempts, "finished": True, "config": determining(config)}
    (folder / RECORD).write_text(json.dumps(record))
    return Run("x", seed, folder / "config.yaml", (), folder, config)


def test_equal_time_comes_from_uninterrupted_pairs_and_stays(tmp_path: Path) -> None:
    plain = {seed: make_timed(tmp_path / f"plain{seed}", seed, 100, [100.0]) for seed in range(4)}
    ppar = {
        0: make_timed(tmp_path / "a", 0, 100, [125.0]),
        1: make_timed(tmp_path / "b", 1, 50, [70.0]),  # 1.4 per step
        2: make_timed(tmp_path / "c", 2, 100, [50.0, 20.0]),  # resumed
        3: make_timed(tmp_path / "d", 3, 100, [None]),  # killed
    }
    assert step_ratio(ppar, plain) == pytest.approx(1.325)
    assert equal_steps({0: ppar[0]}, plain, tmp_path) == 80
    assert equal_steps(ppar, plain, tmp_path) == 80  # as measured at first
    assert step_ratio({2: ppar[2]}, plain) is None
    assert equal_steps({2: ppar[2]}, {2: plain[2]}, tmp_path) is None


def test_where_runs_come_from_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make_timed(tmp_path / "a", 0, 9, [1.0], "tree1")
    other = make_timed(tmp_path / "b", 1, 9, [1.0], "tree2")
    assert source_trees([one], []) == ["tree1"]
    monkeypatch.setattr(runs_module, "source_tree", lambda: "tree1")
    text = "Runs of one thread, 1 at a time; source tree tree1"
    assert provenance([one], [], 1) == f"{text}."
    mixed = f"{text}, tree2. **Runs of 2 different source trees are mixed.**"
    assert provenance([one, other], [], 1) == mixed
    monkeypatch.setattr(runs_module, "source_tree", lambda: "tree3")
    assert provenance([one], [], 1) == f"{text}. **The present source tree is another one, tree3.**"


def test_keys_that_came_later_are_said(tmp_path: Path) -> None:
    run = make_timed(tmp_path / "a", 0, 9, [1.0])
    record = json.loads((run.folder / RECORD).read_text())
    del record["config"]["ppar"]["vtp"]["alpha_max"], record["config"]["augment"]["blur"]
    (run.folder / RECORD).write_text(json.dumps(record))
    assert provenance([run], [], 1).endswith("did not know yet: augment.blur, ppar.vtp.alpha_max.")


def test_variants_bring_what_they_are_compared_with() -> None:
    assert needed(["PPAR without VTP"], PLAIN) == [PLAIN, "PPAR without VTP"]
    assert needed(["PPAR, equal time"], PLAIN) == [PLAIN, "PPAR", "PPAR, equal time"]
    assert needed([PLAIN], "PPAR") == [PLAIN, "PPAR"]


@pytest.mark.parametrize("track", TRACKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_a_valid_configuration(track: str, variant: str) -> None:
    load_config(
        TRACKS[track],
        [*TRACK_KEYS[track], *(override.format(shards="shards") for override in VARIANTS[variant])],
    )
    assert all(base in VARIANTS for base in EQUAL_TIME.values())


@pytest.mark.parametrize(
    ("track", "variant"), [("pretrained", "PPAR"), ("scratch", "PPAR, random convolution")]
)
def test_the_configuration_that_users_have_is_a_variant_of_its_track(track: str, variant: str) -> None:
    assert load_config(TRACKS[track], [*TRACK_KEYS[track], *VARIANTS[variant]]) == load_config(TRACKS[track])


@pytest.mark.parametrize("track", TRACKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_names_its_change_of_style(track: str, variant: str) -> None:
    overrides = (override.format(shards="shards") for override in VARIANTS[variant])
    augment = load_config(TRACKS[track], [*TRACK_KEYS[track], *overrides]).augment
    assert (augment.random_convolution > 0) == ("random convolution" in variant)
    assert (augment.style_exchange > 0) == ("style exchange" in variant)
