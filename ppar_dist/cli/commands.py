"""What each subcommand of ``ppar-dist`` does; returns an exit code, None for 0.

Each imports what it needs: a wrong path is answered before torch is loaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from ppar_dist import exit_codes
from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.processes import rank_log


def prepare(options: argparse.Namespace) -> None:
    """Shards and an index of a data set as downloaded."""
    from ppar_dist.data.prepare import prepare

    folders = prepare(
        options.dataset,
        options.root,
        options.out,
        options.classes,
        limit=options.limit,
        mapping=options.mapping,
        exclude=options.exclude,
        workers=options.workers,
        progress=_count,
    )
    for folder in folders:
        print(folder)


def synth(options: argparse.Namespace) -> None:
    """Synthetic domains."""
    from ppar_dist.synthetic import synth

    for folder in synth(options.out, options.seed, options.samples, tuple(options.size), progress=_count):
        print(folder)


def text(options: argparse.Namespace) -> None:
    """A file of text embeddings."""
    from ppar_dist.class_sets import class_set
    from ppar_dist.config.schema import BackboneConfig, TextConfig
    from ppar_dist.models.backbone import build_backbone
    from ppar_dist.models.text import write_embeddings

    names = [prompt for prompts in class_set(options.classes).prompts for prompt in prompts]
    backbone = build_backbone(BackboneConfig(name=options.model, pretrained=options.pretrained))
    encoder = backbone.text_tower()
    if encoder is None:
        raise UserError(f"{options.model} has no text tower; choose another --model")
    write_embeddings(options.out, names, options.template or TextConfig().templates, encoder)
    print(f"{options.out}: {len(names)} names of {options.classes}, {backbone.embed_dim} wide")


def index(options: argparse.Namespace) -> None:
    """The index of a folder of shards."""
    from ppar_dist.data.shards.build_index import index_folder

    if not 0 <= options.max_bad_ratio <= 1:
        raise UserError(f"--max-bad-ratio is a share from 0 to 1, got {options.max_bad_ratio}")
    index, findings = index_folder(options.folder, options.classes, max_bad_ratio=options.max_bad_ratio)
    for line in findings.lines():
        print(f"{options.folder}: {line}", file=sys.stderr)
    print(f"{options.folder}: {len(index)} samples in {len(index.shards)} shards")


def train(options: argparse.Namespace) -> int | None:
    """This rank's job, or a launcher and its ranks; returns the job's exit code."""
    from ppar_dist.launch.rank import is_rank, note_exit, note_start
    from ppar_dist.processes.signals import Preemption, leave_on_signals

    preemption, launcher = Preemption(note_exit), None
    if is_rank():  # before anything slow: a signal must not find this process deaf
        preemption.watch()
        launcher = note_start()
        rank_log.redirect()
    else:
        leave_on_signals()
    from ppar_dist.config.load import load_config

    config = load_config(options.config, _with_text_file(options.config, options.overrides))
    if not is_rank():
        code = _launch(options, config)
        if code is not None:
            return code
        preemption.watch()
    gc.disable()  # imports make a million objects, none of them garbage: a third of their time
    from ppar_dist.training import rank_job

    gc.freeze()  # nor look at them again at each collection while training
    gc.enable()
    return rank_job.run(config, preemption, options.accept_changes, _count, launcher)


def _launch(options: argparse.Namespace, config: Config) -> int | None:
    """Start the ranks of this machine and wait for them; None where this process is to be the only rank."""
    from ppar_dist.launch.front import default_ranks, launch
    from ppar_dist.launch.nodes import nodes_of
    from ppar_dist.training.plan import make_plan

    ranks = options.nproc if options.nproc is not None else default_ranks()
    if ranks < 1:
        raise UserError(f"--nproc is at least 1, got {ranks}")
    nodes = nodes_of(options.nodes, options.node_rank, options.master)
    make_plan(config, ranks * nodes.count)  # refuse here, once, rather than on every rank
    if ranks * nodes.count == 1:
        return None
    # Not the launcher's own options: torchrun would take --nproc for one of its.
    accept = ["--accept-changes"] if options.accept_changes else []
    arguments = ["train", str(options.config), *options.overrides, *accept]
    return launch(arguments, ranks, options.launcher, config.faults.grace_s, nodes)


def config(options: argparse.Namespace) -> None:
    """The whole configuration, or single values of it as a batch script reads them."""
    from ppar_dist.config.load import dump_config, load_config

    resolved = load_config(options.config, options.overrides)
    if not options.get:
        print(dump_config(resolved), end="")
    values = resolved.model_dump(mode="json")
    for key in options.get:
        print(f"{key}={_value(values, key)}")


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            raise UserError(f"--get {key}: there is no such key; ppar-dist config CONFIG shows all")
        values = values[part]
    return values


def doctor(options: argparse.Namespace) -> int:
    """What would go wrong with a job, or is wrong with a run; 78 where something is."""
    from ppar_dist.config.load import load_config
    from ppar_dist.doctor.findings import Status

    path, overrides = options.path, options.overrides
    ranks = 1 if options.nproc is None else options.nproc
    if ranks < 1 or options.nodes < 1:
        raise UserError(f"--nproc and --nodes are at least 1, got {ranks} and {options.nodes}")
    if path.is_dir():
        from ppar_dist.doctor.runs import examine_run

        if overrides:
            raise UserError(f"{path} is a run; {overrides[0]} would change nothing of it, leave it out")
        report = examine_run(path)
    else:
        from ppar_dist.doctor.job import examine_config
        from ppar_dist.launch.front import default_ranks

        report = examine_config(
            " ".join([str(path), *overrides]),
            lambda: load_config(path, _with_text_file(path, overrides)),
            default_ranks() if options.nproc is None else ranks,
            options.nodes,
            options.quick,
            _show_progress,
        )
    width = shutil.get_terminal_size((110, 24)).columns if sys.stdout.isatty() else 110
    print(json.dumps(report.to_dict(), indent=1) if options.json else "\n".join(report.lines(width)))
    return exit_codes.CONFIG if report.status == Status.FAILURE else exit_codes.DONE


def _with_text_file(path: Path, overrides: list[str]) -> list[str]:
    """Look a relative ``text.file`` that is not here up in $PPAR_WEIGHTS, then in $PPAR_TEST_DATA/weights."""
    from ppar_dist.config.load import load_config

    file = load_config(path, overrides).text.file
    if file is None or file.is_absolute() or file.exists():
        return overrides
    folders = [
        Path(os.environ.get("PPAR_WEIGHTS", ".")),
        Path(os.environ.get("PPAR_TEST_DATA", ".")) / "weights",
    ]
    found = next((folder / file.name for folder in folders if (folder / file.name).exists()), None)
    return overrides if found is None else [*overrides, f"text.file={found.resolve()}"]


def demo(options: argparse.Namespace) -> int:
    """Data, training, evaluation and report in one."""
    from ppar_dist.cli.demo import demo

    return demo(options.out, options.config, options.nproc)


def evaluate(options: argparse.Namespace) -> None:
    """mIoU on labelled domains."""
    targets = {}
    for item in options.target:
        name, separator, folder = item.partition("=")
        if not (separator and name and folder):
            raise UserError(f"--target is NAME=FOLDER, got {item!r}; for example dusk=shards/camvid_0001TP")
        targets[name] = Path(folder)
    if not targets:
        raise UserError("nothing to evaluate on: give --target NAME=FOLDER")
    from ppar_dist.evaluation.evaluate import score

    results = score(options.checkpoint, targets, _device(), options.which, _count)
    print(results.to_json() if options.json else results.table())


def predict(options: argparse.Namespace) -> None:
    """Label maps of images."""
    from ppar_dist.evaluation.predict import predict

    written = predict(
        options.checkpoint, options.images, options.out, _device(), options.which, options.overwrite
    )
    for files in written:
        print(files)
    print(f"legend: {options.out / 'legend.png'}")


def export(options: argparse.Namespace) -> None:
    """A model as a torch.export program."""
    from ppar_dist.evaluation.export import export

    size = tuple(options.size) if options.size else None
    print(export(options.checkpoint, options.out, size, options.which))


def inspect(options: argparse.Namespace) -> None:
    """What a file or folder of ours holds."""
    from ppar_dist.doctor.describe import describe, inspect

    facts = inspect(options.path)
    print(json.dumps(facts, indent=1) if options.json else describe(facts))


def report(options: argparse.Namespace) -> None:
    """report.html of a run."""
    from ppar_dist.report import write_report

    print(write_report(options.run_dir))


def ledger(options: argparse.Namespace) -> int:
    """Proof that every sample came once; 78 where one did not."""
    from ppar_dist.run.audit import audit

    found = audit(options.run_dir)
    print(json.dumps(found.to_json(), indent=1) if options.json else found.describe())
    return exit_codes.CONFIG if found.problems else exit_codes.DONE


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _count(domain: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{domain}: {done}/{total}", end=end, file=sys.stderr, flush=True)
    elif done == total:
        print(f"{domain}: {total} images", file=sys.stderr)


def _show_progress(what: str, done: int, total: int) -> None:
    """A line that is overwritten, on a terminal only."""
    if sys.stderr.isatty():
        text = "" if done == total else f"{what}: {done}/{total}"
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
