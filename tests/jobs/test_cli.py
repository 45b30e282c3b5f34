"""The command line as a user meets it: the whole path, wrong input, and a run that is killed."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file

from ppar_dist.config.load import load_config
from tests.ranks import (
    TIMEOUT_S,
    encode,
    free_port,
    read_lines,
    run_command,
    run_ranks,
    start_ranks,
    succeed,
    tiny_config,
    wait_for_file,
    write_blocks_domain,
    write_config,
)
from tests.sabotage.pace import Pace
from tests.unit.tiny_run import make_domain
from tests.unit.trackers.event_files import as_float32, read_tensorboard


def config_file(root: Path, tmp_path: Path, **sections: dict[str, Any]) -> str:
    return str(write_config(tmp_path / "config.yaml", tiny_config(root, tmp_path / "run", **sections)))


def refused(arguments: Sequence[str]) -> str:
    """The one line with which a command refuses; exit code 78 and no traceback."""
    done = run_command(arguments)
    assert done.returncode == 78, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("ppar-dist: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def finished(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2 ranks started by the DeepSpeed launcher, with a target."""
    folder = tmp_path_factory.mktemp("finished")
    tree = tiny_config(blocks, folder / "run", data={**tiny_config(blocks, folder)["data"], "holdout": 0.25})
    tree["targets"] = {"unseen": str(blocks / "right")}
    printed = succeed("train", write_config(folder / "config.yaml", tree), "--nproc", "2")
    assert "2 ranks x 1 micro-batches x 3" in printed
    return folder / "run"


@pytest.fixture(scope="module")
def scores(finished: Path, blocks: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of its target: what the run wrote itself, and then what ``evaluate`` says."""
    written = json.loads((finished / "results.json").read_text())["targets"]["unseen"]
    printed = succeed("evaluate", finished, "--target", f"unseen={blocks / 'right'}", "--json")
    return written, json.loads(printed)["targets"]["unseen"]


ONE_STEP = {"steps": 1, "global_batch": 6}


@pytest.fixture(scope="module")
def one_step(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step on one rank, which tests copy."""
    folder = tmp_path_factory.mktemp("one_step")
    run_ranks(["train", config_file(blocks, folder, train=ONE_STEP)], 1)
    return folder / "run"


@pytest.fixture
def copied(one_step: Path, blocks: Path, tmp_path: Path) -> str:
    """The configuration of a copy of that run, in ``tmp_path / "run"``."""
    shutil.copytree(one_step, tmp_path / "run")
    return config_file(blocks, tmp_path, train=ONE_STEP)


def test_training_leaves_checkpoint_table_and_report(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert 0 <= results["targets"]["unseen"]["miou"] <= 1
    assert (finished / "checkpoints" / "latest").read_text().strip() == "step-00000008"
    page = (finished / "report.html").read_text()
    assert "unseen" in page
    assert "http://" not in page.replace("http://www.w3.org", "")  # nothing is loaded from outside


def test_evaluate_agrees_with_the_table_of_the_run(scores: tuple[dict[str, Any], dict[str, Any]]) -> None:
    written, evaluated = scores
    assert evaluated["miou"] == pytest.approx(written["miou"], abs=1e-6)


def test_a_domain_that_was_trained_on_is_told(finished: Path, blocks: Path, tmp_path: Path) -> None:
    make_domain(tmp_path / "foreign", 2)
    shutil.copytree(blocks / "right", tmp_path / "copy")  # by its content, wherever it lies
    names = ["copy", "foreign"]
    run = shutil.copytree(finished, tmp_path / "run")
    printed = succeed("evaluate", run, *(f"--target={name}={tmp_path / name}" for name in names))
    told = [line for line in printed.splitlines() if "trained on" in line]
    assert told == ["copy: trained on this domain: no score of domains it never saw"]
    kept = json.loads((tmp_path / "run" / "results.json").read_text())["targets"]
    assert {name: kept[name]["trained_on"] for name in names} == {"copy": True, "foreign": False}


def test_predict_writes_palette_overlay_and_legend(finished: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    out = tmp_path / "out"
    succeed("predict", finished, tmp_path / "photo.jpg", "--out", out)
    assert {path.name for path in out.iterdir()} == {"photo.png", "photo_overlay.jpg", "legend.png"}
    labels = Image.open(out / "photo.png")
    assert (labels.mode, labels.size) == ("P", (70, 50))
    assert np.asarray(labels).max() < 6


def test_a_checkpoint_alone_is_enough(
    finished: Path, scores: tuple[dict[str, Any], dict[str, Any]], blocks: Path, tmp_path: Path
) -> None:
    """Copied away from its run it is scored, labels and is exported as in it."""
    alone = shutil.copytree(finished / "checkpoints" / "step-00000008", tmp_path / "mine")
    printed = succeed("evaluate", alone, "--target", f"unseen={blocks / 'right'}", "--json")
    assert json.loads(printed)["targets"]["unseen"] == scores[1]
    Image.new("RGB", (70, 50), "grey").save(tmp_path / "photo.png")
    succeed("predict", alone, tmp_path / "photo.png", "--out", tmp_path / "out")
    facts = json.loads(succeed("export", alone, "--out", tmp_path / "mine.pt2", "--json"))
    assert facts["file"] == str(tmp_path / "mine.pt2")
    assert (facts["checkpoint"], facts["input_shape"]) == ("mine", ["batch", 3, "height", "width"])
    assert len(facts["classes"]) == facts["output_shape"][1] == 6


@pytest.mark.parametrize("what", ["run", "checkpoint", "shards"])
def test_inspect_tells_what_lies_there(finished: Path, blocks: Path, what: str) -> None:
    path = {
        "run": finished,
        "checkpoint": finished / "checkpoints" / "step-00000008",
        "shards": blocks / "left",
    }[what]
    assert json.loads(succeed("inspect", path, "--json"))


WRONG_CONFIGURATIONS = [
    (["train.stepz=3"], "unknown key train.stepz"),
    (["data.root=nowhere"], "nowhere"),
    (["data.classes=cityscapes19"], "has class set roads6"),
    (["data.classes=roads7"], "roads6"),
    (["data.sources=[left, missing]"], "missing"),
    (["text.file=none.npz"], "none.npz"),
    (["train.global_batch=2", "--nproc", "3"], "every rank needs a sample per step"),
    (["train.global_batch=14", "--nproc", "14"], "14 ranks"),
    (["--nproc", "0"], "--nproc is at least 1, got 0"),
    (["--nproc", "1", "train.stepz=3"], "unknown key train.stepz"),
    (["--nprok", "1", "train.steps=3"], "Unknown option: --nprok"),
    (["model.backbone.name=resnet18", "model.backbone.batch_norm=sync"], "batch_norm=sync works on GPUs"),
    (["targets.x=nowhere"], "nowhere"),
    (["model.backbone.name=resnet1"], "resnet1"),
]


@pytest.fixture(scope="module")
def refusals(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Future[str]]]:
    """What is said to each, two commands at a time: they mostly load libraries."""
    with ThreadPoolExecutor(2) as pool:
        folders = [tmp_path_factory.mktemp("wrong") for _ in WRONG_CONFIGURATIONS]
        yield [
            pool.submit(refused, ["train", config_file(blocks, folder), *extra])
            for folder, (extra, _) in zip(folders, WRONG_CONFIGURATIONS, strict=True)
        ]


@pytest.mark.parametrize("number", range(len(WRONG_CONFIGURATIONS)))
def test_a_wrong_configuration_is_one_line(refusals: list[Future[str]], number: int) -> None:
    assert WRONG_CONFIGURATIONS[number][1] in refusals[number].result()


@pytest.mark.local_data("its counts are changed by hand, which the hashes of an index in a bucket refuse")
def test_a_source_without_any_class_is_refused(tmp_path: Path) -> None:
    from ppar_dist.data.shards.index import DomainIndex

    for name in ("left", "right"):
        write_blocks_domain(tmp_path / name, 4, 0, None)
    counts = np.lib.format.open_memmap(tmp_path / "right" / "counts.npy", mode="r+")
    counts[:] = 0
    counts.flush()
    assert not DomainIndex.open(tmp_path / "right").counts.any()
    text = refused(["train", config_file(tmp_path, tmp_path)])
    assert "source right has no pixel of any class of roads6" in text
    assert "mapping" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nowhere", "--target", "a=b"], "no run or checkpoint at nowhere"),
        (["evaluate", "nowhere"], "give --target NAME=FOLDER"),
        (["evaluate", "nowhere", "--target", "a"], "--target is NAME=FOLDER, got 'a'"),
        (["predict", "nowhere", "x.jpg", "--out", "o"], "no image at x.jpg"),
        (["report", "nowhere"], "nowhere is not a run"),
        (["inspect", "nowhere"], "nowhere"),
        (["prepare", "nothing", "--root", ".", "--out", "o", "--classes", "roads6"], "nothing"),
        (["prepare", "camvid", "--root", "nowhere", "--out", "o", "--classes", "roads6"], "nowhere"),
        (["train"], "parameter CONFIG requires an argument"),
        (["fly"], 'Unknown command "fly"'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_command_is_one_line(arguments: list[str], message: str) -> None:
    assert message in refused(arguments)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.full((32, 48), 77, dtype=np.uint8), "label id 77 is out of range: train ids are 0..5 or 255"),
        (np.zeros((32, 40), dtype=np.uint8), "image is 48x32 but label is 40x32 (width x height)"),
    ],
    ids=["label id", "size"],
)
def test_shards_of_others_are_checked_when_indexed(tmp_path: Path, label: np.ndarray, message: str) -> None:
    members = {"a.jpg": encode(np.zeros((32, 48, 3), dtype=np.uint8), "JPEG"), "a.png": encode(label, "PNG")}
    with tarfile.open(tmp_path / "theirs-000000.tar", "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    text = refused(["index", str(tmp_path), "--classes", "roads6"])
    assert message in text
    assert "sample a" in text


@pytest.mark.usefixtures("copied")
def test_a_damaged_checkpoint_is_refused_by_name(blocks: Path, tmp_path: Path) -> None:
    (weights,) = (tmp_path / "run").glob("checkpoints/*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    text = refused(["evaluate", str(weights.parent), "--target", f"a={blocks / 'left'}"])
    assert "model.safetensors has 100 bytes" in text


def test_a_killed_run_goes_on_and_ends_bit_identical(blocks: Path, tmp_path: Path) -> None:
    """SIGKILL after a checkpoint, the same command again: parameters, bank and log as without the kill.

    The killed one is tracked besides: its event files hold what its log holds.
    """
    sections = {"train": {"steps": 12, "global_batch": 6, "log_every": 1}, "checkpoint": {"every": 4}}
    trees = {name: tiny_config(blocks, tmp_path / name, **sections) for name in ("whole", "killed")}
    trees["killed"]["monitoring"]["trackers"] = ["tensorboard"]
    configs = {name: str(write_config(tmp_path / f"{name}.yaml", tree)) for name, tree in trees.items()}
    run_ranks(["train", configs["whole"]], 2)
    hold = Pace(tmp_path / "hold", step=6)
    processes = start_ranks(["train", configs["killed"]], 2, ["tests.sabotage", hold.hold])
    wait_for_file(tmp_path / "killed" / "checkpoints" / "step-00000004" / "manifest.json")
    note = tmp_path / "killed" / "trackers" / "tensorboard.json"
    wait_for_file(note)
    while json.loads(note.read_text())["train"] < 5:  # the event file is ahead of the checkpoint
        time.sleep(0.05)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
    run_ranks(["train", configs["killed"]], 2)
    final = "checkpoints/step-00000012"
    for file in ("model.safetensors", "ppar.safetensors"):
        whole, killed = (load_file(tmp_path / name / final / file) for name in ("whole", "killed"))
        assert all(torch.equal(whole[key], killed[key]) for key in whole)
    for file in ("train.jsonl", "samples.jsonl"):
        whole_log, killed_log = (
            read_lines(tmp_path / name / "metrics" / file) for name in ("whole", "killed")
        )
        assert [untimed(record) for record in whole_log] == [untimed(record) for record in killed_log]
    records = read_lines(tmp_path / "killed" / "metrics" / "train.jsonl")
    logged = {record["step"]: as_float32(record["loss/total"]) for record in records}
    assert read_tensorboard(tmp_path / "killed")["loss/total"] == logged


def test_the_configuration_is_shown_as_it_would_be_used(tmp_path: Path) -> None:
    file = config_file(tmp_path, tmp_path)
    again = write_config(tmp_path / "again.yaml", yaml.safe_load(succeed("config", file, "train.steps=11")))
    assert load_config(again) == load_config(Path(file), ["train.steps=11"])
    some = succeed("config", file, "train.steps=11", "--get", "run.dir", "--get", "train.steps")
    assert some == f"run.dir={tmp_path / 'run'}\ntrain.steps=11\n"
    assert "train.stepz: there is no such key" in refused(["config", file, "--get", "train.stepz"])


def test_the_text_may_move_but_not_change(copied: str, blocks: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.npz"
    shutil.copy(blocks / "text.npz", moved)
    succeed("train", copied, f"text.file={moved}")
    names = np.load(moved)["names"]
    np.savez(moved, names=names, embeddings=np.random.default_rng(6).normal(size=(6, 16)))
    assert "moved.npz does not hold what" in refused(["train", copied, f"text.file={moved}"])


def test_a_finished_run_is_not_started_again(finished: Path) -> None:
    config = finished.parent / "config.yaml"
    before = (finished / "report.html").stat().st_mtime_ns
    before_s = os.times().children_user
    printed = succeed("train", config, "--nproc", "2")
    assert printed == f"already finished: {finished} has all 8 steps (step-00000008)\n"
    assert (finished / "report.html").stat().st_mtime_ns == before
    assert os.times().children_user - before_s < 3, "it loads no torch, and starts no ranks"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_metrics_port_in_use_is_refused_by_all_ranks(blocks: Path, tmp_path: Path, rank: int) -> None:
    with socket.socket() as taken:
        port = free_port(2)
        taken.bind(("127.0.0.1", port + rank))
        taken.listen()
        monitoring = {"enabled": True, "port": port}
        processes = start_ranks(["train", config_file(blocks, tmp_path, monitoring=monitoring)], 2)
        outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [78, 78], outputs
    assert all("monitoring.port" in output and f"rank {rank} on" in output for output in outputs)


def test_a_running_job_serves_its_metrics(blocks: Path, tmp_path: Path) -> None:
    port = free_port(2)
    train = {"steps": 100_000, "global_batch": 6, "log_every": 1}  # warm-up, for as long as anybody looks
    config = config_file(blocks, tmp_path, train=train, monitoring={"enabled": True, "port": port})
    processes = start_ranks(["train", config], 2)
    try:
        samples = scrape_until(f"http://127.0.0.1:{port}/metrics", is_of_one_moment)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert samples["ppar_loss", "total"] > 0
    assert samples["ppar_alignment_stage", ""] == 0
    assert samples["ppar_effective_sample_size_ratio", ""] == pytest.approx(1.0)


def is_of_one_moment(samples: dict[tuple[str, str], float]) -> bool:
    """Whether a page tells of 20 steps or more with all their samples; one made within a step does not."""
    steps = samples.get(("ppar_steps_total", ""), 0.0)
    if steps < 20:
        return False
    names = ("ppar_samples_total", "ppar_sample_weight_count")
    taken, weighted = ([samples[name, domain] for domain in ("left", "right")] for name in names)
    return sum(taken) == 6 * steps and taken == weighted


def scrape_until(
    url: str, condition: Callable[[dict[tuple[str, str], float]], bool]
) -> dict[tuple[str, str], float]:
    """The samples of an endpoint by name and domain or term, once ``condition`` holds for a page."""
    deadline, samples = time.monotonic() + TIMEOUT_S, {}
    while time.monotonic() < deadline:
        with suppress(OSError):
            text = urllib.request.urlopen(url, timeout=60).read().decode()
            page = [s for family in text_string_to_metric_families(text) for s in family.samples]
            samples = {(s.name, s.labels.get("domain", s.labels.get("term", ""))): s.value for s in page}
            if condition(samples):
                return samples
        time.sleep(0.05)
    raise AssertionError(f"no page of one moment, the last of all: {samples}")


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    times = ("seconds", "data_wait", "images_per_second")
    return {key: value for key, value in record.items() if key not in times}


def test_a_changed_configuration_does_not_go_on_unasked(copied: str) -> None:
    text = refused(["train", copied, "optim.lr=0.5", "train.log_every=3"])
    assert "optim.lr: 0.001 -> 0.5" in text
    assert "log_every" not in text
    succeed("train", copied, "train.log_every=3")


def test_the_best_checkpoint_is_kept_and_a_refused_change_leaves_the_run_alone(
    blocks: Path, tmp_path: Path
) -> None:
    """At a rate of nearly 0 the first evaluation stays the best; no checkpoint was due at that step."""
    sections = {
        "train": {"steps": 4, "global_batch": 6, "eval_every": 1},
        "optim": {"lr": 1e-12, "backbone_lr": 0.0},
        "data": {**tiny_config(blocks, tmp_path)["data"], "holdout": 0.25},
    }
    config = config_file(blocks, tmp_path, **sections)
    run_ranks(["train", config], 1)
    run = tmp_path / "run"
    assert {path.name for path in run.glob("checkpoints/step-*")} == {"step-00000001", "step-00000004"}
    before = (run / "config.yaml").read_text()
    text = refused(["train", config, "--accept-changes", "train.steps=8", "train.global_batch=12"])
    assert "24 samples in 4 steps are not global batches of 12; keep train.global_batch" in text
    assert (run / "config.yaml").read_text() == before
