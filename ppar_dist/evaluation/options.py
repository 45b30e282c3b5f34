"""Options of an evaluation: keys of the section ``evaluation`` that replace a run's.

They are held to their types: from Python a text that looks like a number or a boolean is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ppar_dist.config.evaluation_section import PRESETS, EvaluationConfig
from ppar_dist.config.load import all_keys
from ppar_dist.config.problems import problems
from ppar_dist.config.schema import Config
from ppar_dist.errors import ConfigError, UserError

_WINDOW = ("crop", "stride")
_SEE = "docs/configuration.md has the keys of the section evaluation"


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse values that are wrong in any run; nothing is read.

    Raises:
        ConfigError: a value is wrong; every problem is in the message.
    """
    given = dict(options)
    if given.get("preset") is None:  # one of the two alone is held to that of the run
        given |= {to: given[of] for of, to in (_WINDOW, _WINDOW[::-1]) if of in given and to not in given}
    _parsed(given)


def with_options(config: Config, options: Mapping[str, Any]) -> Config:
    """A configuration with other keys in its section ``evaluation``; a preset replaces the whole protocol.

    Raises:
        ConfigError: a value is wrong.
        UserError: an option would have no effect.
    """
    if not options:
        return config
    section = config.evaluation.model_dump(mode="python")
    if options.get("preset") is not None:
        section = {key: section[key] for key in ("batch", "workers")}
    named = PRESETS.get(str(options.get("preset")), {})
    _refuse_idle(options, {**section, **named, **options})
    found = _parsed(section | dict(options))
    return config.model_copy(update={"evaluation": found})


def _parsed(tree: Mapping[str, Any]) -> EvaluationConfig:
    try:
        return EvaluationConfig.model_validate(_tuples(dict(tree)), strict=True)
    except ValidationError as error:
        found = problems(error, all_keys(EvaluationConfig), _SEE)
        raise ConfigError(f"options of the evaluation: {'; '.join(found)}") from None


def _tuples(value: Any) -> Any:
    """The same with tuples for lists, as the section holds them."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _refuse_idle(options: Mapping[str, Any], whole: Mapping[str, Any]) -> None:
    """Refuse what was asked for and changes nothing."""
    given = [key for key in _WINDOW if options.get(key) is not None]
    if given and whole.get("mode", "whole") == "whole":
        raise UserError(
            f"{' and '.join(given)} are of windows, and the images are seen whole (mode=whole), so they "
            "have no effect; add mode=slide (--mode slide), or leave them out"
        )
    if options.get("unresized") and whole.get("size") == "own":
        raise UserError(
            "unresized names images that keep their size, and with size=own all do, so it has no effect; "
            "leave it out, or give another size"
        )
