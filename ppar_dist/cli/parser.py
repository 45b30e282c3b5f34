"""``ppar-dist``: one subcommand per task, one contract of exit codes.

Exit codes are those of ``exitcodes.py``.
A user's mistake is one line on stderr, never a traceback.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppar_dist import __version__, exit_codes
from ppar_dist.cli import commands
from ppar_dist.errors import UserError
from ppar_dist.launch.launchers import LAUNCHERS
from ppar_dist.launch.rank import note_exit
from ppar_dist.monitoring import health
from ppar_dist.processes.rank_log import last_words
from ppar_dist.text import visible_lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    code = _main(arguments)
    note_exit(code)
    return code


def _main(arguments: list[str]) -> int:
    _prepare_streams()
    os.umask(os.umask(0o002) | 0o002)  # whatever the umask: nobody outside the group may change a run
    options = _parse(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(_LogLine("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    _quieten_libraries()
    try:
        code: int | None = options.run(options)
        return exit_codes.DONE if code is None else code
    except UserError as error:
        last_words(f"ppar-dist: {visible_lines(str(error))}")
        return exit_codes.CONFIG
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.DONE
    except Exception as error:  # the last resort: everything a user can cause is a UserError
        logging.getLogger(__name__).exception("internal error")
        last_words(f"ppar-dist: internal error: {type(error).__name__}: {visible_lines(str(error))}")
        return exit_codes.INTERNAL


class _LogLine(logging.Formatter):
    """A name out of a shard may hold what a terminal would obey; in a log line it is written out."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return visible_lines(super().formatMessage(record))


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
        self.exit(exit_codes.CONFIG, f"ppar-dist: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(prog="ppar-dist", description="Segmentation that holds up on domains it never saw.")
    parser.add_argument("--version", action="version", version=__version__)
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")
    _data_commands(parsers)
    _training_commands(parsers)
    _result_commands(parsers)
    return parser


def _data_commands(parsers: Any) -> None:
    prepare = parsers.add_parser("prepare", help="turn a data set as downloaded into shards with an index")
    prepare.add_argument("dataset", help="camvid, labelmefacade, cityscapes, gta5, synthia, urbansyn, folder")
    prepare.add_argument("--root", type=Path, required=True, help="where the data set was unpacked")
    prepare.add_argument("--out", type=Path, required=True, help="folder for the domains")
    prepare.add_argument("--classes", required=True, help="class set: roads6, cityscapes19, camvid11")
    prepare.add_argument("--limit", type=int, help="only so many images per domain")
    prepare.add_argument("--mapping", type=Path, help="for folder: YAML file of label values and names")
    prepare.add_argument("--exclude", action="append", default=[], metavar="KEY", help="leave a sample out")
    prepare.add_argument("--workers", type=int, default=1, help="threads; the result is the same")
    prepare.set_defaults(run=commands.prepare)
    synth = parsers.add_parser("synth", help="render synthetic street scenes with exact labels")
    synth.add_argument("--out", type=Path, required=True)
    synth.add_argument("--samples", type=int, default=120, help="per domain")
    synth.add_argument("--size", type=int, nargs=2, default=(180, 240), metavar=("H", "W"))
    synth.add_argument("--seed", type=int, default=0)
    synth.set_defaults(run=commands.synth)
    text = parsers.add_parser("text", help="write a CLIP text tower's class embeddings to a file")
    text.add_argument("--model", default="ViT-B-16-quickgelu", help="open_clip model name")
    text.add_argument("--pretrained", default="openai", help="open_clip tag or a checkpoint file")
    text.add_argument("--classes", required=True)
    text.add_argument("--template", action="append", metavar="'a photo of a {}.'")
    text.add_argument("--out", type=Path, required=True)
    text.set_defaults(run=commands.text)
    index = parsers.add_parser("index", help="make the index of shards that others made")
    index.add_argument("folder", type=Path)
    index.add_argument("--classes", required=True)
    index.add_argument(
        "--max-bad-ratio",
        type=float,
        default=0.0,
        metavar="R",
        help="leave bad samples out, up to this share of all, and list them in quarantine.jsonl",
    )
    index.set_defaults(run=commands.index)


def _training_commands(parsers: Any) -> None:
    train = parsers.add_parser("train", help="train, or go on with a run that was interrupted")
    train.add_argument("config", type=Path)
    train.add_argument("overrides", nargs="*", metavar="key=value")
    train.add_argument("--nproc", type=int, help="ranks on this machine (default: one per GPU, else 1)")
    train.add_argument("--nodes", type=int, default=1, help="machines; run the same command on each")
    train.add_argument("--node-rank", type=int, metavar="I", help="number of this machine, from 0")
    train.add_argument("--master", metavar="HOST[:PORT]", help="machine 0, where the ranks meet")
    train.add_argument("--launcher", choices=LAUNCHERS, default="deepspeed", help="what starts the ranks")
    train.add_argument("--accept-changes", action="store_true", help="go on with a changed configuration")
    train.set_defaults(run=commands.train)
    config = parsers.add_parser("config", help="print the whole configuration as it would be used")
    config.add_argument("config", type=Path)
    config.add_argument("overrides", nargs="*", metavar="key=value")
    config.add_argument("--get", action="append", default=[], metavar="KEY", help="only this, as KEY=VALUE")
    config.set_defaults(run=commands.config)
    doctor = parsers.add_parser("doctor", help="say what would go wrong with a job, or is wrong with a run")
    doctor.add_argument("path", type=Path, metavar="CONFIG|RUN", help="a configuration, or a run's folder")
    doctor.add_argument("overrides", nargs="*", metavar="key=value")
    doctor.add_argument("--nproc", type=int, help="ranks on each machine (default: as train)")
    doctor.add_argument("--nodes", type=int, default=1, help="machines (default: 1)")
    doctor.add_argument("--quick", action="store_true", help="sizes of shards instead of their hashes")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(run=commands.doctor)
    check = parsers.add_parser("health", help="ask the ranks on this machine whether they advance")
    health.add_arguments(check)
    check.set_defaults(run=health.run)
    demo = parsers.add_parser("demo", help="render data, train on it, evaluate and report")
    demo.add_argument("--out", type=Path, default=Path("demo"))
    demo.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    demo.add_argument("--nproc", type=int, help="ranks (default: one per GPU, else 2)")
    demo.set_defaults(run=commands.demo)


def _result_commands(parsers: Any) -> None:
    evaluate = parsers.add_parser("evaluate", help="mIoU on labelled domains")
    evaluate.add_argument("checkpoint", type=Path, help="a run or one of its checkpoints")
    evaluate.add_argument("--target", action="append", default=[], metavar="NAME=FOLDER")
    evaluate.add_argument("--which", choices=("latest", "best"), default="latest")
    evaluate.add_argument("--json", action="store_true")
    evaluate.set_defaults(run=commands.evaluate)
    predict = parsers.add_parser("predict", help="label images of your own")
    predict.add_argument("checkpoint", type=Path)
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    predict.add_argument("--out", type=Path, required=True)
    predict.add_argument("--which", choices=("latest", "best"), default="latest")
    predict.add_argument("--overwrite", action="store_true", help="write into a folder that holds files")
    predict.set_defaults(run=commands.predict)
    export = parsers.add_parser("export", help="write the model as a torch.export program")
    export.add_argument("checkpoint", type=Path)
    export.add_argument("--out", type=Path, required=True, help="a .pt2 file")
    export.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="default: the training crop")
    export.add_argument("--which", choices=("latest", "best"), default="latest")
    export.set_defaults(run=commands.export)
    inspect = parsers.add_parser("inspect", help="say what a checkpoint, run, shard or index holds")
    inspect.add_argument("path", type=Path)
    inspect.add_argument("--json", action="store_true")
    inspect.set_defaults(run=commands.inspect)
    ledger = parsers.add_parser("ledger", help="prove from a run's ledger that every sample came once")
    ledger.add_argument("run_dir", type=Path, metavar="RUN")
    ledger.add_argument("--json", action="store_true")
    ledger.set_defaults(run=commands.ledger)
    report = parsers.add_parser("report", help="write report.html of a run")
    report.add_argument("run_dir", type=Path, metavar="RUN")
    report.set_defaults(run=commands.report)


def _prepare_streams() -> None:
    """Streams that take any text: one closed at the start (`>&-`) is None, and libraries write to it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path that the locale cannot spell


def _quieten_libraries() -> None:
    for name in ("httpx", "PIL", "timm", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
