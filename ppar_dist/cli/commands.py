"""The subcommands of ``ppar-dist``: signature and docstring of each are its options and help.

Each returns an exit code (None for 0) and imports what it needs: a wrong path is refused before torch loads.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from ppar_dist import __version__, exit_codes
from ppar_dist.cli.progress import count_images, show_progress
from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.launch.launchers import Launcher
from ppar_dist.monitoring import health as health_check
from ppar_dist.processes import rank_log

app = App(
    name="ppar-dist",
    help="Segmentation that holds up on domains it never saw.",
    version=__version__,
    default_parameter=Parameter(negative=(), allow_repeating=True),
    help_formatter="plain",
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command()

Trained = Annotated[Path, Parameter(help="a run or one of its checkpoints")]
Classes = Annotated[str, Parameter(help="class set: roads6, cityscapes19, camvid11")]
ConfigFile = Annotated[Path, Parameter(help="YAML file, or a name that `ppar-dist config list` shows")]
Override = Annotated[str, Parameter(name="key=value", help="replaces the value in the file")]
Json = Annotated[bool, Parameter(name="--json", help="print JSON")]
Size = Annotated[tuple[int, int], Parameter(help="height and width in pixels")]
Range = Annotated[
    tuple[float, float],
    Parameter(name="--range", help="values that become black and white, of images with more than 8 bits"),
]
Which = Annotated[Literal["latest", "best"], Parameter(help="checkpoint of a run")]

_LONGEST_SIDE = 16384  # pixels of an exported program: longer than any camera's, too long for most memories


@app.command
def prepare(
    dataset: str,
    /,
    *,
    root: Path,
    out: Path,
    classes: Classes,
    limit: int | None = None,
    mapping: Path | None = None,
    exclude: list[str] | None = None,
    skip_bad: bool = False,
    jpeg: int | None = None,
    value_range: Range | None = None,
    overwrite: bool = False,
    workers: int = 1,
) -> None:
    """Turn a data set as downloaded into shards with an index.

    Args:
        dataset: camvid, labelmefacade, cityscapes, gta5, synthia, urbansyn, folder
        root: where the data set was unpacked
        out: folder for the domains
        limit: only so many images per domain
        mapping: for folder: YAML file of label values and names
        exclude: key of a sample to leave out; may be repeated
        skip_bad: go on without bad pairs, which are listed
        jpeg: quality at which images that are not JPEG become that (default: images stay as they came)
        overwrite: replace a domain that was made with other options
        workers: threads; the result is the same
    """
    from ppar_dist.data.prepare import Options, prepare

    options = Options(limit, mapping, exclude or (), skip_bad, jpeg, value_range, overwrite, workers)
    tell = functools.partial(print, file=sys.stderr)
    for folder in prepare(dataset, root, out, classes, options, progress=count_images, tell=tell):
        print(folder)


@app.command
def synth(*, out: Path, samples: int = 120, size: Size = (180, 240), seed: int = 0) -> None:
    """Render synthetic street scenes with exact labels.

    Args:
        out: folder for the domains
        samples: per domain
        seed: of all that is drawn
    """
    from ppar_dist.synthetic import synth

    for folder in synth(out, seed, samples, size, progress=count_images):
        print(folder)


@app.command
def text(
    *,
    classes: Classes,
    out: Path,
    model: str = "ViT-B-16-quickgelu",
    pretrained: str = "openai",
    template: list[str] | None = None,
) -> None:
    """Write a CLIP text tower's class embeddings to a file.

    Args:
        out: the .npz file to write
        model: open_clip model name
        pretrained: open_clip tag or a checkpoint file
        template: such as 'a photo of a {}.'; may be repeated
    """
    from ppar_dist.class_sets import class_set
    from ppar_dist.config.schema import BackboneConfig, TextConfig
    from ppar_dist.models.backbone import build_backbone
    from ppar_dist.models.text import write_embeddings

    names = [prompt for prompts in class_set(classes).prompts for prompt in prompts]
    backbone = build_backbone(BackboneConfig(name=model, pretrained=pretrained))
    encoder = backbone.text_tower()
    if encoder is None:
        raise UserError(f"{model} has no text tower; choose another --model")
    write_embeddings(out, names, template or TextConfig().templates, encoder)
    print(f"{out}: {len(names)} names of {classes}, {backbone.embed_dim} wide")


@app.command
def index(
    folder: Path,
    /,
    *,
    classes: Classes,
    max_bad_ratio: float = 0.0,
    image_ending: list[str] | None = None,
    label_ending: list[str] | None = None,
) -> None:
    """Make the index of existing shards.

    Args:
        folder: a domain's folder of tar shards
        max_bad_ratio: leave bad samples out, up to this share of all, and list them in quarantine.jsonl
        image_ending: how names of images end, such as png (default: jpg and others); may be repeated
        label_ending: how names of labels end, such as seg.png (default: png and others); may be repeated
    """
    from ppar_dist.data.shards.build_index import index_folder
    from ppar_dist.data.shards.grouping import endings_of

    if not 0 <= max_bad_ratio <= 1:
        raise UserError(f"--max-bad-ratio is a share from 0 to 1, got {max_bad_ratio}")
    endings = endings_of(image_ending or (), label_ending or ())
    index, findings = index_folder(folder, classes, max_bad_ratio=max_bad_ratio, endings=endings)
    for line in findings.lines():
        print(f"{folder}: {line}", file=sys.stderr)
    print(f"{folder}: {len(index)} samples in {len(index.shards)} shards{findings.left_out()}")


@app.command
def train(
    config: ConfigFile,
    /,
    *overrides: Override,
    nproc: int | None = None,
    nodes: int | None = None,
    node_rank: int | None = None,
    master: str | None = None,
    launcher: Launcher = "deepspeed",
    accept_changes: bool = False,
) -> int | None:
    """Train, or resume a run that was interrupted.

    Args:
        nproc: ranks on this machine (default: one per GPU, else 1)
        nodes: machines; run the same command on each (default: a PyTorchJob's pods, else 1)
        node_rank: number of this machine, from 0
        master: HOST[:PORT] of machine 0, where the ranks meet
        launcher: what starts the ranks
        accept_changes: resume with a changed configuration
    """
    from ppar_dist.launch.environment import settle
    from ppar_dist.launch.rank import is_rank, note_exit, note_start
    from ppar_dist.processes.signals import Preemption, leave_on_signals

    _refuse_below_1("--nproc", nproc)
    told = settle(os.environ, nproc, nodes, node_rank, master)
    preemption, parent = Preemption(note_exit), None
    if is_rank():  # before anything slow: a signal may arrive at any time
        preemption.watch()
        parent = note_start()
        rank_log.redirect()
    else:
        leave_on_signals()
    settings = _load(config, overrides)
    if not is_rank():
        from ppar_dist.launch.front import default_ranks, launch
        from ppar_dist.launch.nodes import nodes_of
        from ppar_dist.run.facts import finished
        from ppar_dist.training.plan import make_plan

        if last := finished(settings, lambda: make_plan(settings, 1).facts()):  # torch is not loaded
            print(f"already finished: {settings.run.dir} has all {settings.train.steps} steps ({last})")
            return None
        ranks = default_ranks() if nproc is None else nproc
        machines = told or nodes_of(1 if nodes is None else nodes, node_rank, master)
        make_plan(settings, ranks * machines.count)  # refuse here, once, rather than on every rank
        if settings.data.workers:
            from ppar_dist.data.workers import check_temporary_folder  # loads torch

            check_temporary_folder()
        if ranks * machines.count > 1:
            # Without the options of the launch: torchrun would read --nproc as its own.
            accept = ["--accept-changes"] if accept_changes else []
            arguments = ["train", str(config), *overrides, *accept]
            return launch(arguments, ranks, launcher, settings.faults.grace_s, machines)
        preemption.watch()
    gc.disable()  # imports create a million objects and no garbage: collecting takes a third of their time
    from ppar_dist.training import rank_job

    gc.freeze()  # collections while training skip these objects
    gc.enable()
    return rank_job.run(settings, preemption, accept_changes, count_images, parent)


@app.command
def config(config: ConfigFile, /, *overrides: Override, get: list[str] | None = None) -> None:
    """Print the whole configuration as it would be used; with ``list``, those of the package.

    Args:
        get: print only this key, as KEY=VALUE; may be repeated
    """
    from ppar_dist.config.load import dump_config, load_config, packaged_configs, value_of

    if str(config) == "list" and not config.is_file():
        width = max(map(len, packaged_configs()))
        print(*(f"{name:{width}}  {line}" for name, line in packaged_configs().items()), sep="\n")
        return
    resolved = load_config(config, overrides)
    if not get:
        print(dump_config(resolved), end="")
    for key in get or []:
        print(f"{key}={value_of(resolved, key)}")


@app.command
def doctor(
    path: Annotated[Path, Parameter(name="CONFIG|RUN")],
    /,
    *overrides: Override,
    nproc: int | None = None,
    nodes: int = 1,
    quick: bool = False,
    as_json: Json = False,
) -> int:
    """Check a configuration before a job starts, or the health of a run's folder.

    Args:
        path: a configuration, or a run's folder
        nproc: ranks on each machine (default: as train)
        nodes: machines
        quick: compare sizes of shards instead of their hashes
    """
    from ppar_dist.doctor.findings import Status

    _refuse_below_1("--nproc", nproc)
    _refuse_below_1("--nodes", nodes)
    if path.is_dir() and not _is_packaged(path):
        from ppar_dist.doctor.runs import examine_run

        if overrides:
            raise UserError(f"{path} is a run; {overrides[0]} has no effect on it, leave it out")
        report = examine_run(path)
    else:
        from ppar_dist.doctor.job import examine_config
        from ppar_dist.launch.front import default_ranks

        subject, ranks = " ".join([str(path), *overrides]), default_ranks() if nproc is None else nproc
        report = examine_config(subject, lambda: _load(path, overrides), ranks, nodes, quick, show_progress)
    width = shutil.get_terminal_size((110, 24)).columns if sys.stdout.isatty() else 110
    print(json.dumps(report.to_dict(), indent=1) if as_json else "\n".join(report.lines(width)))
    return exit_codes.CONFIG if report.status == Status.FAILURE else exit_codes.DONE


def _is_packaged(folder: Path) -> bool:
    """Whether a folder that is no run has the name of a packaged configuration, as the demo's has."""
    from ppar_dist.config.load import find_config
    from ppar_dist.run import paths

    return not paths.config_file(folder).is_file() and find_config(folder) != folder


def _load(path: Path, overrides: Sequence[str]) -> Config:
    """The configuration, its files of weights looked up in $PPAR_WEIGHTS too."""
    from ppar_dist.config.load import load_config
    from ppar_dist.config.weights import find_weights

    return find_weights(load_config(path, overrides), Path(os.environ.get("PPAR_WEIGHTS", ".")))


@app.command(help_flags=(), version_flags=())
def health(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True, help="see its own help")]) -> int:
    """Ask the ranks on this machine whether they advance."""
    return health_check.main(arguments)


@app.command
def demo(*, out: Path = Path("demo"), config: ConfigFile = Path("demo"), nproc: int | None = None) -> int:
    """Render data, train on it, evaluate and report.

    Args:
        out: folder for the data and the run
        nproc: ranks (default: one per GPU, else 2)
    """
    from ppar_dist.cli.demo import demo
    from ppar_dist.launch.environment import settle

    _refuse_below_1("--nproc", nproc)
    settle(os.environ, nproc or 2)
    return demo(out, config, nproc)


@app.command
def evaluate(
    checkpoint: Trained, /, *, target: list[str] | None = None, which: Which = "latest", as_json: Json = False
) -> None:
    """Print the mIoU on labelled domains.

    Args:
        target: NAME=FOLDER of a domain; may be repeated
    """
    targets = {}
    for item in target or []:
        name, separator, folder = item.partition("=")
        if not (separator and name and folder):
            raise UserError(f"--target is NAME=FOLDER, got {item!r}; for example dusk=shards/camvid_0001TP")
        targets[name] = Path(folder)
    if not targets:
        raise UserError("nothing to evaluate on: give --target NAME=FOLDER")
    from ppar_dist.evaluation.evaluate import score

    results = score(checkpoint, targets, _device(), which, count_images)
    print(results.to_json() if as_json else results.table())


@app.command
def predict(
    checkpoint: Trained,
    images: list[Path],
    /,
    *,
    out: Path,
    which: Which = "latest",
    batch: int = 1,
    value_range: Range | None = None,
    overwrite: bool = False,
    as_json: Json = False,
) -> int:
    """Label images of your own; exit code 78 if one could not be done.

    Args:
        images: files, or folders that are searched with all below
        out: folder for labels and overlays
        batch: images of one size that the model sees at once
        overwrite: write into a folder that holds files
    """
    _refuse_below_1("--batch", batch)
    from ppar_dist.evaluation.predict import PredictedImage, predict

    def tell(result: object, done: int, total: int) -> None:
        show_progress("predict", total, total)  # clears the line
        if not isinstance(result, PredictedImage):
            print(result, file=sys.stderr, flush=True)
        elif not as_json:
            print(result, flush=True)
        show_progress("predict", done, total)

    found = predict(checkpoint, images, out, _device(), which, overwrite, batch, value_range, tell)
    print(json.dumps(found.to_dict(), indent=1) if as_json else f"legend: {found.legend}")
    print(found, file=sys.stderr)
    return exit_codes.CONFIG if found.failed else exit_codes.DONE


@app.command
def audit(run: Path, /, *, images: int = 200, regions: int = 50, as_json: Json = False) -> None:
    """Let a run's sources judge each other's labels, and draw the most distrusted regions.

    Args:
        run: a run's folder
        images: of each source, spread evenly; 0: all
        regions: how many to draw, the most distrusted first
    """
    if images < 0 or regions < 1:
        raise UserError(
            f"--images is 0 (all) or more and --regions 1 or more, got {images} and {regions}; correct them"
        )
    from ppar_dist.evaluation.audit import audit

    found = audit(run, images, regions, _device())
    if as_json:
        print(found.list.read_text(encoding="utf-8"), end="")
    else:
        print(f"{found.table()}\nregions drawn: {len(found.regions)}, listed in {found.list}")


@app.command
def export(
    checkpoint: Trained,
    /,
    *,
    out: Path,
    size: Size | None = None,
    which: Which = "latest",
    as_json: Json = False,
) -> None:
    """Write the model as a torch.export program.

    Args:
        out: a .pt2 file
        size: height and width (default: the training crop)
    """
    if size is not None and not 1 <= min(size) <= max(size) <= _LONGEST_SIDE:
        raise UserError(f"--size is from 1 to {_LONGEST_SIDE} pixels each, got {size[0]} {size[1]}")
    from ppar_dist.evaluation.export import export

    done = export(checkpoint, out, size, which)
    print(json.dumps(done.to_dict(), indent=1) if as_json else done)


@app.command
def inspect(path: Path, /, *, as_json: Json = False) -> None:
    """Show the contents of a checkpoint, run, shard or index.

    Args:
        path: a folder, or a file in it
    """
    from ppar_dist.doctor.describe import describe, inspect

    facts = inspect(path)
    print(json.dumps(facts, indent=1) if as_json else describe(facts))


@app.command
def report(run: Path, /) -> None:
    """Write report.html of a run.

    Args:
        run: its folder
    """
    from ppar_dist.report import write_report

    print(write_report(run))


@app.command
def ledger(run: Path, /, *, as_json: Json = False) -> int:
    """Prove from a run's ledger that every sample was used once; exit code 78 if not.

    Args:
        run: its folder
    """
    from ppar_dist.run.audit import audit

    found = audit(run)
    print(json.dumps(found.to_json(), indent=1) if as_json else found.describe())
    return exit_codes.CONFIG if found.problems else exit_codes.DONE


def _refuse_below_1(option: str, count: int | None) -> None:
    if count is not None and count < 1:
        raise UserError(f"{option} is at least 1, got {count}")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
