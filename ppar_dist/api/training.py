"""Training from Python: the command ``ppar-dist train``, its output, and how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml

from ppar_dist import exit_codes
from ppar_dist.api import arguments
from ppar_dist.config.load import dump_config, load_config, packaged_configs, parse_config
from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.launch.launchers import Launcher
from ppar_dist.run import paths

if TYPE_CHECKING:  # these load torch
    import torch

    from ppar_dist.api.model import Model
    from ppar_dist.evaluation.results import Results

_TOLD = "ppar-dist: "  # begins the line in which a command says why it ended
_LAST_LINES = 10  # of the output, told where there is no such line


@dataclass(frozen=True)
class TrainedRun:
    """A run that has all its steps.

    Attributes:
        folder: the run's folder.
        results: its scores on the targets that the configuration names; None where it names none.
    """

    folder: Path
    results: Results | None

    def load(
        self, device: torch.device | str | None = None, which: Literal["latest", "best"] = "latest"
    ) -> Model:
        """The model, as ``ppar_dist.load`` loads it."""
        from ppar_dist.api.model import load

        return load(self.folder, device, which)


class JobEnded(RuntimeError):
    """A training ended before its last step, and its configuration is not to blame.

    Attributes:
        code: of its exit; 75: train again with the same arguments, it resumes from the newest checkpoint.
        folder: the run's folder.
    """

    def __init__(self, message: str, code: int, folder: Path) -> None:
        super().__init__(message)
        self.code, self.folder = code, folder


def train(
    config: str | os.PathLike[str] | Config | Mapping[str, Any],
    *,
    nproc: int | None = None,
    launcher: Launcher = "deepspeed",
    accept_changes: bool = False,
    quiet: bool = False,
    **overrides: Any,
) -> TrainedRun:
    """Train, or resume a run that was interrupted, as ``ppar-dist train`` does; returns when it has ended.

    It runs in processes of its own, and their output is printed here. An interrupt (Ctrl-C, the stop button
    of a notebook) lets them save and end before it is raised.

    Args:
        config: a YAML file, the name of a packaged configuration, a ``Config``, or a mapping like the file.
        nproc: ranks (default: one per GPU, else 1).
        launcher: what starts several ranks.
        accept_changes: resume with a changed configuration.
        quiet: do not print the output.
        overrides: values that replace the configuration's: ``seed=3``, ``train={"steps": 100}``, or
            ``**{"train.steps": 100}``.

    Raises:
        UserError: the configuration or its data cannot work.
        JobEnded: another end before the last step.
    """
    if nproc is not None:
        arguments.count("nproc", nproc)
    arguments.choice("launcher", launcher, get_args(Launcher))
    arguments.flag("accept_changes", accept_changes)
    arguments.flag("quiet", quiet)
    settings = resolved(config, overrides)
    options = ["--launcher", launcher, *([] if nproc is None else ["--nproc", str(nproc)])]
    options += ["--accept-changes"] if accept_changes else []
    with _file_of(settings) as file:
        code, said = _run(["train", str(file), *options], quiet)
    if code == exit_codes.CONFIG:
        raise UserError(said)
    if code != exit_codes.DONE:
        raise JobEnded(f"{said} (exit code {code})", code, settings.run.dir)
    return TrainedRun(settings.run.dir, _results(settings.run.dir))


def resolved(
    config: str | os.PathLike[str] | Config | Mapping[str, Any], overrides: Mapping[str, Any]
) -> Config:
    """The whole configuration, values of ``overrides`` in place of its own.

    Raises:
        ConfigError: it cannot be read, or a key or value is wrong.
    """
    if not isinstance(config, str | os.PathLike | Config | Mapping):
        raise UserError(
            f"config is a YAML file, the name of a packaged configuration ({', '.join(packaged_configs())}), "
            f"a mapping or a Config, got {config!r}; correct it"
        )
    flat = dict(_flat("", overrides))
    if isinstance(config, str | os.PathLike):
        lines = [yaml.safe_dump(value, default_flow_style=True, width=1 << 30) for value in flat.values()]
        texts = [line.removesuffix("\n").removesuffix("\n...") for line in lines]
        return load_config(Path(config), [f"{key}={text}" for key, text in zip(flat, texts, strict=True)])
    tree = config.model_dump(mode="json") if isinstance(config, Config) else _plain(config)
    for key, value in flat.items():
        *sections, last = key.split(".")
        node = tree
        for name in sections:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise UserError(f"{key} is given, but {name} is a value, not a section; correct it")
        node[last] = value
    return parse_config(tree, "the configuration")


def _flat(prefix: str, tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys with dots and their values; an empty mapping is a value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", _plain(value)


def _plain(value: Any) -> Any:
    """Plain values, as YAML holds them: paths become text, sequences lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, os.PathLike) else value


@contextmanager
def _file_of(settings: Config) -> Iterator[Path]:
    """A file of a configuration, for as long as the job runs."""
    with tempfile.TemporaryDirectory(prefix="ppar-dist-") as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(dump_config(settings), encoding="utf-8")
        yield file


def _run(arguments: Sequence[str], quiet: bool) -> tuple[int, str]:
    """Run a command of ``ppar-dist`` and print what it prints; its exit code, and why it ended.

    The command has a session of its own, so that an interrupt comes to it once, from here.
    """
    command = [sys.executable, "-m", "ppar_dist", *arguments]
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as job:
        try:
            _follow(job, last, quiet)
        except BaseException as error:
            job.send_signal(signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
            _follow(job, last, quiet)  # it saves and ends
            raise
    said = next((line.removeprefix(_TOLD) for line in reversed(last) if line.startswith(_TOLD)), None)
    return job.returncode, said or "\n".join(last) or "it said nothing"


def _follow(job: subprocess.Popen[str], last: deque[str], quiet: bool) -> None:
    assert job.stdout is not None
    for line in job.stdout:
        last.append(line.rstrip("\n"))
        if not quiet:
            print(line, end="", flush=True)
    job.wait()


def _results(run: Path) -> Results | None:
    """The scores that a run's folder keeps of its last checkpoint."""
    from ppar_dist.evaluation.results import Results, TargetResult

    file = run / paths.RESULTS
    if not file.is_file():
        return None
    table = json.loads(file.read_text(encoding="utf-8"))
    targets = {name: TargetResult(**_known(TargetResult, item)) for name, item in table["targets"].items()}
    found = _known(Results, table) | {"classes": tuple(table["classes"]), "targets": targets}
    return Results(**found)


def _known(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}
