"""The ``ppar-dist`` application, and what its commands share.

A command's signature and docstring are its options and help. Each returns an exit code (None for 0) and
imports what it needs: a wrong path is refused before torch loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter, Token

from ppar_dist import __version__
from ppar_dist.errors import UserError
from ppar_dist.storage.location import refuse_url


def _refuse_urls(hint: object, value: object) -> None:
    """Refuse a URL where a path is expected: it would be a folder of this machine that is called ``s3:``."""
    for each in value if isinstance(value, list | tuple) else (value,):
        if isinstance(each, Path):
            refuse_url(each)


app = App(
    name="ppar-dist",
    help="Segmentation that holds up on domains it never saw.",
    version=__version__,
    default_parameter=Parameter(negative=(), allow_repeating=True, validator=_refuse_urls),
    help_formatter="plain",
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command()


def whole_number(hint: type, tokens: Sequence[Token]) -> int:
    """A number without a fraction; the parser's own rounds one away.

    Raises:
        ValueError: it has a fraction, or is not a number.
    """
    try:
        return int(tokens[0].value)
    except ValueError:
        text = f'unable to convert "{tokens[0].value}" into int; give a whole number'
        raise ValueError(text) from None


Trained = Annotated[
    str, Parameter(help="a run, one of its checkpoints, or a model folder; of the first two also the URL")
]
Classes = Annotated[
    str,
    Parameter(help="class set: roads6, cityscapes19, cityscapes16, cityscapes13, camvid11, or a YAML file"),
]
ConfigFile = Annotated[Path, Parameter(help="YAML file, or a name that `ppar-dist config list` shows")]
Override = Annotated[str, Parameter(name="key=value", help="replaces the value in the file")]
Json = Annotated[bool, Parameter(name="--json", help="print JSON")]
Whole = Annotated[int, Parameter(converter=whole_number)]
Size = Annotated[tuple[int, int], Parameter(help="height and width in pixels")]
Range = Annotated[
    tuple[float, float],
    Parameter(name="--range", help="values that become black and white, of images with more than 8 bits"),
]
Which = Annotated[Literal["latest", "best"], Parameter(help="checkpoint of a run")]
Weights = Annotated[
    Literal["raw", "averaged"], Parameter(help="of the last step, or their average (train.weight_average)")
]


def refuse_below_1(option: str, count: int | None) -> None:
    """Refuse a number of things below 1; None stands for the default.

    Raises:
        UserError: the number is below 1.
    """
    if count is not None and count < 1:
        raise UserError(f"{option} is at least 1, got {count}")


def on_this_machine(place: str, which: str) -> tuple[Path, str]:
    """The path that a command was given; of a URL, the checkpoint there, downloaded.

    Args:
        place: a path or a URL.
        which: ``latest`` or ``best``, of a run.

    Returns:
        The path, and which of its checkpoints is meant.

    Raises:
        UserError: no URL, or no whole checkpoint there.
    """
    from ppar_dist.checkpoint import local_checkpoint
    from ppar_dist.storage.location import location

    return local_checkpoint(location(place), which)


def device() -> str:
    """Where a model runs outside of training: the GPU, where torch sees one."""
    from ppar_dist.evaluation.load import default_device

    return default_device()
