"""Read a configuration: one YAML file plus ``key=value`` overrides, validated as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ppar_dist.config.fields import url_keys
from ppar_dist.config.problems import problems
from ppar_dist.config.schema import Config
from ppar_dist.config.yaml import MAX_CHARACTERS, MAX_DEPTH, read_yaml
from ppar_dist.errors import ConfigError, UserError
from ppar_dist.text import guess, one_line, printable, shown

_PACKAGED = Path(__file__).parents[1] / "configs"  # those of configs/, which come with the package
_PROBLEMS = 20  # listed in one message; the rest are counted


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply ``key.sub=value`` overrides (values are YAML) and validate.

    ``path`` may be the bare name of a file that comes with the package, as ``find_config`` says.

    Raises:
        ConfigError: the file is missing or not a mapping, an override is malformed, or any key
            or value is wrong; the message lists every problem.
    """
    try:
        with find_config(path).open(encoding="utf-8") as file:
            tree = read_yaml(file.read(MAX_CHARACTERS + 1))  # one more shows that it is too long
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}; {_remedy(Path(path))}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} is not valid YAML: {one_line(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"config {path} holds keys and values, got {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(tree, origin=str(path))


def find_config(path: Path) -> Path:
    """The file that ``path`` means: a bare name without suffix, where no file has it, is a packaged one's."""
    packaged = _PACKAGED / f"{path}.yaml"
    is_name = Path(path).name == str(path) and not Path(path).suffix
    return packaged if is_name and packaged.is_file() and not Path(path).is_file() else Path(path)


def packaged_configs() -> dict[str, str]:
    """Names of the files that come with the package, and the line that each begins with."""
    files = sorted(_PACKAGED.glob("*.yaml"))
    return {file.stem: file.read_text("utf-8").partition("\n")[0].lstrip("# ") for file in files}


def parse_config(tree: dict[str, Any], origin: str = "config") -> Config:
    """Validate a tree of plain values; raises UserError naming every wrong key at once."""
    keys = url_keys(tree)
    if keys:
        raise ConfigError(
            f"{origin}: a URL may stand in data.root, targets, init_from, text.file, checkpoint.remote and "
            f"model.backbone.pretrained alone, got one in {printable(', '.join(keys))}; give a path "
            "(config.yaml would keep the URL, with any credentials in it)"
        )
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        found = problems(error, all_keys())
        more = [f"and {len(found) - _PROBLEMS} more problems"] if len(found) > _PROBLEMS else []
        raise ConfigError(f"{origin}: {'; '.join([*found[:_PROBLEMS], *more])}") from None
    if not _reads_back(config):
        raise ConfigError(
            f"{origin}: too long or too deeply nested for the config.yaml of a run (at most {MAX_CHARACTERS} "
            f"characters and {MAX_DEPTH} levels); shorten its texts, lists or model.backbone.options"
        )
    return config


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that ``load_config`` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def value_of(config: Config, key: str) -> Any:
    """The value of a key with dots, as `dump_config` writes it.

    Raises:
        UserError: there is no such key.
    """
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            hint = guess(key, all_keys())
            raise UserError(f"{key}: there is no such key{hint}; ppar-dist config CONFIG shows all")
        value = value[part]
    return value


def all_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every key there is, with dots."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            keys += all_keys(section, f"{prefix}{name}.")
    return keys


def _remedy(path: Path) -> str:
    known = packaged_configs()
    if path.suffix and path.stem in known:
        return f"check the path, or write {path.stem}, the configuration of that name in the package"
    is_name = path.name == str(path) and not path.suffix
    there = f"; the package has {', '.join(known)} (`ppar-dist config list`)" if is_name else ""
    return f"check the path{guess(path.name, known)}{there}"


def _reads_back(config: Config) -> bool:
    try:
        return Config.model_validate(read_yaml(dump_config(config))) == config
    except (yaml.YAMLError, ValidationError):
        return False


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise ConfigError(f"an override is key=value, got {shown(override)}; for example train.steps=100")
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override {shown(override)}: the value is not valid YAML: {one_line(error)}"
        ) from None
    node = tree
    for part in parts[:-1]:
        child = node.get(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {shown(override)}: {printable(part)} is a value, not a section")
        node[part] = node = dict(child)  # a copy: an alias may have put the same section elsewhere too
    node[parts[-1]] = value
