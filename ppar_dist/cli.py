"""``ppar-dist``: one subcommand per task, one contract of exit codes.

Exit codes are those of ``exitcodes.py``.
A user's mistake is one line on stderr, never a traceback.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppar_dist import __version__, exitcodes
from ppar_dist.config import ConfigError
from ppar_dist.launch import LAUNCHERS, note_exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    code = _main(arguments)
    note_exit(code)
    return code


def _main(arguments: list[str]) -> int:
    _open_closed_streams()
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    _quieten_libraries()
    try:
        code: int | None = options.run(options, arguments)
        return exitcodes.DONE if code is None else code
    except ConfigError as error:
        print(f"ppar-dist: {error}", file=sys.stderr)
        return exitcodes.CONFIG
    except KeyboardInterrupt:
        return exitcodes.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exitcodes.DONE
    except Exception:  # the last resort: everything a user can cause is a ConfigError
        logging.getLogger(__name__).exception("internal error")
        return exitcodes.INTERNAL


def _parse(arguments: list[str]) -> argparse.Namespace:
    """The options; overrides may also stand after other options, where argparse allows none."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(item.startswith("-") for item in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


class _Parser(argparse.ArgumentParser):
    """argparse with our exit code for a wrong command line."""

    def error(self, message: str) -> Any:
        self.exit(exitcodes.CONFIG, f"ppar-dist: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(prog="ppar-dist", description="Segmentation that holds up on domains it never saw.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _data_commands(commands)
    _training_commands(commands)
    _result_commands(commands)
    return parser


def _data_commands(commands: Any) -> None:
    prepare = commands.add_parser("prepare", help="turn a data set as downloaded into shards with an index")
    prepare.add_argument("dataset", help="camvid, labelmefacade, cityscapes, gta5, synthia, urbansyn, folder")
    prepare.add_argument("--root", type=Path, required=True, help="where the data set was unpacked")
    prepare.add_argument("--out", type=Path, required=True, help="folder for the domains")
    prepare.add_argument("--classes", required=True, help="class set: roads6, cityscapes19, camvid11")
    prepare.add_argument("--limit", type=int, help="only so many images per domain")
    prepare.add_argument("--mapping", type=Path, help="for folder: YAML file of label values and names")
    prepare.add_argument("--exclude", action="append", default=[], metavar="KEY", help="leave a sample out")
    prepare.add_argument("--workers", type=int, default=1, help="threads; the result is the same")
    prepare.set_defaults(run=_prepare)
    synth = commands.add_parser("synth", help="render synthetic street scenes with exact labels")
    synth.add_argument("--out", type=Path, required=True)
    synth.add_argument("--samples", type=int, default=120, help="per domain")
    synth.add_argument("--size", type=int, nargs=2, default=(180, 240), metavar=("H", "W"))
    synth.add_argument("--seed", type=int, default=0)
    synth.set_defaults(run=_synth)
    text = commands.add_parser("text", help="write a CLIP text tower's class embeddings to a file")
    text.add_argument("--model", default="ViT-B-16-quickgelu", help="open_clip model name")
    text.add_argument("--pretrained", default="openai", help="open_clip tag or a checkpoint file")
    text.add_argument("--classes", required=True)
    text.add_argument("--template", action="append", metavar="'a photo of a {}.'")
    text.add_argument("--out", type=Path, required=True)
    text.set_defaults(run=_text)
    index = commands.add_parser("index", help="make the index of shards that others made")
    index.add_argument("folder", type=Path)
    index.add_argument("--classes", required=True)
    index.add_argument(
        "--max-bad-ratio",
        type=float,
        default=0.0,
        metavar="R",
        help="leave bad samples out, up to this share of all, and list them in quarantine.jsonl",
    )
    index.set_defaults(run=_index)


def _training_commands(commands: Any) -> None:
    train = commands.add_parser("train", help="train, or go on with a run that was interrupted")
    train.add_argument("config", type=Path)
    train.add_argument("overrides", nargs="*", metavar="key=value")
    train.add_argument("--nproc", type=int, help="ranks on this machine (default: one per GPU, else 1)")
    train.add_argument("--launcher", choices=LAUNCHERS, default="deepspeed", help="what starts the ranks")
    train.add_argument("--accept-changes", action="store_true", help="go on with a changed configuration")
    train.set_defaults(run=_train)
    doctor = commands.add_parser("doctor", help="say what would go wrong with a job, or is wrong with a run")
    doctor.add_argument("path", type=Path, metavar="CONFIG|RUN", help="a configuration, or a run's folder")
    doctor.add_argument("overrides", nargs="*", metavar="key=value")
    doctor.add_argument("--nproc", type=int, help="ranks on each machine (default: as train)")
    doctor.add_argument("--nodes", type=int, default=1, help="machines (default: 1)")
    doctor.add_argument("--quick", action="store_true", help="sizes of shards instead of their hashes")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(run=_doctor)
    demo = commands.add_parser("demo", help="render data, train on it, evaluate and report")
    demo.add_argument("--out", type=Path, default=Path("demo"))
    demo.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    demo.add_argument("--nproc", type=int, help="ranks (default: one per GPU, else 2)")
    demo.set_defaults(run=_demo)


def _result_commands(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="mIoU on labelled domains")
    evaluate.add_argument("checkpoint", type=Path, help="a run or one of its checkpoints")
    evaluate.add_argument("--target", action="append", default=[], metavar="NAME=FOLDER")
    evaluate.add_argument("--which", choices=("latest", "best"), default="latest")
    evaluate.add_argument("--json", action="store_true")
    evaluate.set_defaults(run=_evaluate)
    predict = commands.add_parser("predict", help="label images of your own")
    predict.add_argument("checkpoint", type=Path)
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    predict.add_argument("--out", type=Path, required=True)
    predict.add_argument("--which", choices=("latest", "best"), default="latest")
    predict.add_argument("--overwrite", action="store_true", help="write into a folder that holds files")
    predict.set_defaults(run=_predict)
    export = commands.add_parser("export", help="write the model as a torch.export program")
    export.add_argument("checkpoint", type=Path)
    export.add_argument("--out", type=Path, required=True, help="a .pt2 file")
    export.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="default: the training crop")
    export.add_argument("--which", choices=("latest", "best"), default="latest")
    export.set_defaults(run=_export)
    inspect = commands.add_parser("inspect", help="say what a checkpoint, run, shard or index holds")
    inspect.add_argument("path", type=Path)
    inspect.add_argument("--json", action="store_true")
    inspect.set_defaults(run=_inspect)
    ledger = commands.add_parser("ledger", help="prove from a run's ledger that every sample came once")
    ledger.add_argument("run_dir", type=Path, metavar="RUN")
    ledger.add_argument("--json", action="store_true")
    ledger.set_defaults(run=_ledger)
    report = commands.add_parser("report", help="write report.html of a run")
    report.add_argument("run_dir", type=Path, metavar="RUN")
    report.set_defaults(run=_report)


# Each command imports what it needs: a wrong path is answered before torch is loaded.


def _prepare(options: argparse.Namespace, _: list[str]) -> None:
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


def _synth(options: argparse.Namespace, _: list[str]) -> None:
    from ppar_dist.data.synthetic import synth

    for folder in synth(options.out, options.seed, options.samples, tuple(options.size), progress=_count):
        print(folder)


def _text(options: argparse.Namespace, _: list[str]) -> None:
    from ppar_dist.config import BackboneConfig, TextConfig
    from ppar_dist.labels import class_set
    from ppar_dist.models.backbone import build_backbone
    from ppar_dist.models.text import write_embeddings

    names = [prompt for prompts in class_set(options.classes).prompts for prompt in prompts]
    backbone = build_backbone(BackboneConfig(name=options.model, pretrained=options.pretrained))
    encoder = backbone.text_tower()
    if encoder is None:
        raise ConfigError(f"{options.model} has no text tower; choose another --model")
    write_embeddings(options.out, names, options.template or TextConfig().templates, encoder)
    print(f"{options.out}: {len(names)} names of {options.classes}, {backbone.embed_dim} wide")


def _index(options: argparse.Namespace, _: list[str]) -> None:
    from ppar_dist.data.indexer import index_folder

    if not 0 <= options.max_bad_ratio <= 1:
        raise ConfigError(f"--max-bad-ratio is a share from 0 to 1, got {options.max_bad_ratio}")
    index, findings = index_folder(options.folder, options.classes, max_bad_ratio=options.max_bad_ratio)
    for line in findings.lines():
        print(f"{options.folder}: {line}", file=sys.stderr)
    print(f"{options.folder}: {len(index)} samples in {len(index.shards)} shards")


def _train(options: argparse.Namespace, _: list[str]) -> int | None:
    from ppar_dist.launch import is_rank, note_start
    from ppar_dist.preemption import Preemption

    preemption = Preemption()
    if is_rank():
        preemption.watch()  # before anything slow: a signal must not find this process deaf
        note_start()
    from ppar_dist.config import load_config
    from ppar_dist.launch import default_ranks, launch
    from ppar_dist.plan import make_plan

    config = load_config(options.config, _with_text_file(options.config, options.overrides))
    if not is_rank():
        ranks = options.nproc if options.nproc is not None else default_ranks()
        if ranks < 1:
            raise ConfigError(f"--nproc is at least 1, got {ranks}")
        make_plan(config, ranks)  # refuse here, once, rather than on every rank
        if ranks > 1:
            # Not the launcher's own options: torchrun would take --nproc for one of its.
            accept = ["--accept-changes"] if options.accept_changes else []
            arguments = ["train", str(options.config), *options.overrides, *accept]
            return launch(arguments, ranks, options.launcher, config.faults.grace_s)
        preemption.watch()
    from ppar_dist import job

    return job.run(config, preemption, options.accept_changes, _count)


def _doctor(options: argparse.Namespace, _: list[str]) -> int:
    from ppar_dist.config import load_config
    from ppar_dist.doctor import Status, examine_config, examine_run
    from ppar_dist.launch import default_ranks

    path, overrides = options.path, options.overrides
    ranks = options.nproc if options.nproc is not None else default_ranks()
    if ranks < 1 or options.nodes < 1:
        raise ConfigError(f"--nproc and --nodes are at least 1, got {ranks} and {options.nodes}")
    if path.is_dir():
        if overrides:
            raise ConfigError(f"{path} is a run; {overrides[0]} would change nothing of it, leave it out")
        report = examine_run(path)
    else:
        report = examine_config(
            " ".join([str(path), *overrides]),
            lambda: load_config(path, _with_text_file(path, overrides)),
            ranks,
            options.nodes,
            options.quick,
            _show_progress,
        )
    width = shutil.get_terminal_size((110, 24)).columns if sys.stdout.isatty() else 110
    print(json.dumps(report.to_dict(), indent=1) if options.json else "\n".join(report.lines(width)))
    return exitcodes.CONFIG if report.status == Status.FAILURE else exitcodes.DONE


def _with_text_file(path: Path, overrides: list[str]) -> list[str]:
    """Look a relative ``text.file`` that is not here up in $PPAR_WEIGHTS, then in $PPAR_TEST_DATA/weights."""
    from ppar_dist.config import load_config

    file = load_config(path, overrides).text.file
    if file is None or file.is_absolute() or file.exists():
        return overrides
    folders = [
        Path(os.environ.get("PPAR_WEIGHTS", ".")),
        Path(os.environ.get("PPAR_TEST_DATA", ".")) / "weights",
    ]
    found = next((folder / file.name for folder in folders if (folder / file.name).exists()), None)
    return overrides if found is None else [*overrides, f"text.file={found.resolve()}"]


def _demo(options: argparse.Namespace, _: list[str]) -> int:
    from ppar_dist.demo import demo

    return demo(options.out, options.config, options.nproc)


def _evaluate(options: argparse.Namespace, _: list[str]) -> None:
    targets = {}
    for item in options.target:
        name, separator, folder = item.partition("=")
        if not (separator and name and folder):
            raise ConfigError(f"--target is NAME=FOLDER, got {item!r}; for example dusk=shards/camvid_0001TP")
        targets[name] = Path(folder)
    if not targets:
        raise ConfigError("nothing to evaluate on: give --target NAME=FOLDER")
    from ppar_dist.evaluate import score

    results = score(options.checkpoint, targets, _device(), options.which, _count)
    print(results.to_json() if options.json else results.table())


def _predict(options: argparse.Namespace, _: list[str]) -> None:
    from ppar_dist.predict import predict

    written = predict(
        options.checkpoint, options.images, options.out, _device(), options.which, options.overwrite
    )
    for files in written:
        print(files)
    print(f"legend: {options.out / 'legend.png'}")


def _export(options: argparse.Namespace, _: list[str]) -> None:
    from ppar_dist.export import export

    size = tuple(options.size) if options.size else None
    print(export(options.checkpoint, options.out, size, options.which))


def _inspect(options: argparse.Namespace, _: list[str]) -> None:
    from ppar_dist.inspection import describe, inspect

    facts = inspect(options.path)
    print(json.dumps(facts, indent=1) if options.json else describe(facts))


def _report(options: argparse.Namespace, _: list[str]) -> None:
    from ppar_dist.report import write_report

    print(write_report(options.run_dir))


def _ledger(options: argparse.Namespace, _: list[str]) -> int:
    from ppar_dist.ledger import audit

    found = audit(options.run_dir)
    print(json.dumps(found.to_json(), indent=1) if options.json else found.describe())
    return exitcodes.CONFIG if found.problems else exitcodes.DONE


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


def _open_closed_streams() -> None:
    """A standard stream closed at the start (`>&-`) is None, and libraries write to it all the same."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _quieten_libraries() -> None:
    for name in ("httpx", "PIL", "timm", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
