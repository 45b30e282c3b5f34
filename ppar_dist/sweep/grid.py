"""The file of a sweep, and the runs that it stands for, all checked before the first one starts.

::

    base: roads                           # a configuration's file, or a name that the package brings
    set: {train.steps: 2000}              # keys of every run
    seeds: [0, 1, 2]
    variants:                             # name: the keys that it changes
      plain: {ppar.enabled: false}
      PPAR: {}
    grid:                                 # every variant with every combination of these
      optim.lr: [1.0e-3, 3.0e-4]
    baseline: plain                       # the variant that the others are compared with
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from ppar_dist.config.fields import PlainValues, Seed
from ppar_dist.config.identity import config_changes
from ppar_dist.config.load import all_keys, dump_config, find_config, load_config
from ppar_dist.config.problems import problems
from ppar_dist.config.schema import Config
from ppar_dist.config.section import Section
from ppar_dist.config.yaml import MAX_CHARACTERS, read_yaml
from ppar_dist.errors import ConfigError, UserError
from ppar_dist.files.durable import make_folder, write_atomically
from ppar_dist.run import paths
from ppar_dist.text import guess, one_line

_MOST_RUNS = 10_000
_OWN_KEYS = {"seed": "seeds", "run.dir": "--out"}  # keys of a run that the sweep sets


class Grid(Section):
    """What the file says."""

    base: str
    set: PlainValues = Field(default={})
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default=[0])
    variants: Annotated[dict[str, PlainValues], Field(min_length=1)] = Field(default={"base": {}})
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default={})
    baseline: str | None = None

    def mistakes(self) -> list[str]:
        """What is wrong in the file itself, beside its form: told with what is wrong in configurations."""
        found = []
        if self.baseline is not None and self.baseline not in self.variants:
            found.append(
                f"baseline is one of the variants ({', '.join(self.variants)}), got {self.baseline}"
                + (guess(self.baseline, self.variants) or "; correct it")
            )
        if len(set(self.seeds)) < len(self.seeds):
            found.append(f"each seed is there once, got {self.seeds}; remove one")
        for key in dict.fromkeys(itertools.chain(self.set, self.grid, *self.variants.values())):
            if key in _OWN_KEYS:
                found.append(f"{key} is not a key of a variant; use {_OWN_KEYS[key]}")
        return found


@dataclass(frozen=True)
class Row:
    """A line of the table: runs that differ in their seed only."""

    name: str
    baseline: str | None  # the row that it is compared with; None: the sweep has none, or it is this


@dataclass(frozen=True)
class Planned:
    """One run of a sweep."""

    row: Row
    seed: int
    config: Config
    file: Path  # of its configuration
    log: Path  # of what it prints

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.row.name}, seed {self.seed}"


def read_grid(path: Path) -> Grid:
    """Read the file of a sweep.

    Raises:
        ConfigError: it cannot be read, or has not the form of a sweep; all problems of its form in one
            message.
    """
    try:
        with path.open(encoding="utf-8") as file:
            tree = read_yaml(file.read(MAX_CHARACTERS + 1))
    except OSError as error:
        raise ConfigError(f"cannot read the sweep {path}: {error.strerror}; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the sweep {path} is not valid YAML: {one_line(error)}") from None
    try:
        return Grid.model_validate(tree)
    except ValidationError as error:
        found = problems(error, all_keys(Grid), f"a sweep has {', '.join(all_keys(Grid))}")
        raise ConfigError(f"{path}: {'; '.join(found)}") from None


def plan_runs(
    path: Path, out: Path, check: Callable[[Config], object] = lambda config: None
) -> list[Planned]:
    """The runs of a sweep, seed by seed: after the first seed there is a first table to look at.

    Args:
        path: the file of the sweep; a relative ``base`` that is not in this folder is sought beside it.
        out: folder of the sweep.
        check: called with every configuration; its UserError is reported with those of the configuration.

    Raises:
        ConfigError: a configuration is wrong, or a run that is there was made with another one; all problems
            are in the message.
    """
    grid = read_grid(path)
    base = find_config(Path(grid.base))
    base = base if base.is_file() else path.parent / base
    rows, wrong, planned = list(_rows(grid)), {text: text for text in grid.mistakes()}, list[Planned]()
    if len(rows) * len(grid.seeds) > _MOST_RUNS:
        raise ConfigError(
            f"{path}: {len(rows) * len(grid.seeds)} runs, at most {_MOST_RUNS}; split the sweep"
        )
    slugs = _slugs([row.name for row, _ in rows])
    for seed, (row, keys) in itertools.product(grid.seeds, rows):
        stem = f"{slugs[row.name]}/seed-{seed}"
        own = {"seed": seed, "run.dir": str(out / "runs" / stem)}
        given = [f"{key}={_as_yaml(value)}" for key, value in {**grid.set, **keys, **own}.items()]
        try:
            config = load_config(base, given)
            _refuse_another(config)
            check(config)
        except UserError as error:
            wrong.setdefault(str(error), f"{row.name}, seed {seed}: {error}")  # once for all seeds
            continue
        file, log = out / "configs" / f"{stem}.yaml", out / "logs" / f"{stem}.log"
        planned.append(Planned(row, seed, config, file, log))
    if wrong:
        raise ConfigError(f"{path}: no run was started. " + "; ".join(wrong.values()))
    return planned


def write_configs(planned: list[Planned]) -> None:
    """Write the file of every run's configuration, and make the folders of the logs."""
    for run in planned:
        make_folder(run.log.parent)
        make_folder(run.file.parent)
        write_atomically(run.file, dump_config(run.config))


def _rows(grid: Grid) -> Iterator[tuple[Row, Mapping[str, Any]]]:
    """Each row, and the keys that make it; a variant's own keys win over those of the grid."""
    for values in itertools.product(*grid.grid.values()):
        cell = dict(zip(grid.grid, values, strict=True))
        for name, keys in grid.variants.items():
            other = None if grid.baseline in (None, name) else _label(str(grid.baseline), cell)
            yield Row(_label(name, cell), other), {**cell, **keys}


def _label(name: str, cell: Mapping[str, Any]) -> str:
    return ", ".join([name, *(f"{key}={_as_yaml(value)}" for key, value in cell.items())])


def _as_yaml(value: Any) -> str:
    """A value as an override holds it; flow style, on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=2**31)
    return text.removesuffix("\n").removesuffix("\n...")


def _slugs(names: list[str]) -> dict[str, str]:
    """A name for folders of each row; those that would be the same are numbered."""
    found: dict[str, str] = {}
    for name in names:
        slug = re.sub(r"[^A-Za-z0-9.=_-]+", "-", name).strip("-.")[:120] or "run"
        number = sum(each == slug or each.startswith(f"{slug}~") for each in found.values())
        found[name] = f"{slug}~{number + 1}" if number else slug
    return found


def _refuse_another(config: Config) -> None:
    """Refuse a folder that holds a run of another configuration: the table would show its scores."""
    file = paths.config_file(config.run.dir)
    if file.is_file() and (changes := config_changes(load_config(file), config)):
        raise ConfigError(
            f"{config.run.dir} was trained with another configuration ({'; '.join(changes)}); give another "
            "--out, or delete that folder"
        )
