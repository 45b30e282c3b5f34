"""A run written by an earlier version (README.txt) is read, verified, evaluated and trained to its end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ppar_dist.checkpoint import find_checkpoint, list_checkpoints, verify
from ppar_dist.config.load import dump_config, load_config
from ppar_dist.data.reading import read_sample
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import SampleError
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.run.audit import audit
from tests.ranks import read_lines, run_command

HERE = Path(__file__).parent
RUN = HERE / "run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the run that may be changed."""
    return Path(shutil.copytree(RUN, tmp_path / "run"))


@pytest.mark.parametrize("name", ["a", "b"])
def test_every_sample_of_its_domains_reads(name: str) -> None:
    index = DomainIndex.open(HERE / "domains" / name)
    assert (index.name, index.class_set, len(index)) == (name, "roads6", 4)
    bad = {}
    for sample in range(len(index)):
        try:
            decoded = read_sample(index, sample)
        except SampleError as error:
            bad[sample] = error.reason
        else:
            assert decoded.key == f"s{sample:03d}"
            assert decoded.image.shape == (3, *decoded.label.shape)
    assert bad == ({0: "checksum"} if name == "b" else {})


def test_its_domains_have_the_fingerprints_that_its_checkpoints_note() -> None:
    noted = json.loads((RUN / "checkpoints" / "step-00000004" / "manifest.json").read_text())["data"]
    assert noted == {name: DomainIndex.open(HERE / "domains" / name).fingerprint for name in "ab"}


def test_its_ledger_is_proved() -> None:
    found = audit(RUN)
    assert (found.problems, found.steps, found.positions) == ([], 4, 16)


def test_its_checkpoints_verify_and_the_newest_is_found() -> None:
    assert [folder.name for folder in list_checkpoints(RUN)] == ["step-00000002", "step-00000004"]
    assert [verify(folder) for folder in list_checkpoints(RUN)] == [[], []]
    assert find_checkpoint(RUN) == RUN / "checkpoints" / "step-00000004"


@pytest.mark.parametrize("which", ["latest", "best"])
def test_its_model_is_ready_to_predict(run: Path, which: str) -> None:
    segmentor, config, classes, checkpoint = load_segmentor(run, which=which)
    assert checkpoint.name == {"latest": "step-00000004", "best": "step-00000002"}[which]
    assert (config.train.steps, classes.name) == (6, "roads6")
    assert torch.isfinite(segmentor(torch.zeros(1, 3, 16, 24)).logits).all()


def test_its_run_resumes_and_computes_what_the_earlier_program_did(run: Path) -> None:
    overrides = [f"run.dir={run}", f"data.root={HERE / 'domains'}", f"text.file={HERE / 'text.npz'}"]
    before = {path: path.read_bytes() for path in run.rglob("*.jsonl")}
    done = run_command(["train", str(run / "config.yaml"), *overrides])
    assert done.returncode == 0, done.stderr
    assert find_checkpoint(run) == run / "checkpoints" / "step-00000006"

    # The same colours are drawn as ever, but since then done in other arithmetic: by 2 of 255 on average.
    # Step 5 shows that weights, statistics and samples are those that were saved; step 6 that it was taken.
    expected = json.loads((HERE / "steps_5_and_6.json").read_text())
    for kind, lines in expected.items():
        found = read_lines(run / "metrics" / f"{kind}.jsonl")[-len(lines) :]
        for line, old in zip(found, lines, strict=True):
            near = {"rel": 2e-2 if line["step"] == 5 else 0.2}
            scores = old.pop("domains", {})
            old.pop("grad_norm", None)  # ten times as sensitive as the loss
            assert {name: line[name] for name in old} == pytest.approx(old, **near)
            assert {name: line["domains"][name] for name in scores} == pytest.approx(scores, **near)

    found = audit(run)
    assert (found.problems, found.attempts, found.steps, found.positions) == ([], 2, 6, 24)
    for path, content in before.items():
        assert path.read_bytes().startswith(content), f"{path.name} lost lines"
    bad = read_lines(run / "quarantine" / "rank-00000.jsonl")
    assert {line["reason"] for line in bad} == {"checksum"}
    assert len(bad) == 4
    assert (run / "report.html").exists()


def test_every_key_that_a_run_wrote_is_still_a_key() -> None:
    """A run's own config.yaml has all keys, so one that goes would take every earlier run with it."""
    config = load_config(HERE / "config.yaml")
    written, now = yaml.safe_load((HERE / "config.yaml").read_text()), yaml.safe_load(dump_config(config))
    assert _named(now, written) == written


def _named(values: Any, like: Any) -> Any:
    """The part of ``values`` whose keys ``like`` has."""
    return {key: _named(values[key], like[key]) for key in like} if isinstance(like, dict) else values
