"""How targets are scored: what the model sees of an image, and the published protocols."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator

from ppar_dist.config.fields import Count, Number, Whole
from ppar_dist.config.section import Section

_WINDOWS = {"mode": "slide", "crop": (512, 512), "stride": (341, 341)}
# BDD100K's images, which these two papers leave as they are. Sources: docs/evaluation.md.
_BDD = ((720, 1280),)
PRESETS: dict[str, dict[str, Any]] = {
    "rein": {"size": (512, 1024), "unresized": _BDD, **_WINDOWS},
    "tqdm": {"size": (1024, 2048), "unresized": _BDD, **_WINDOWS},
    "famix": {"size": "own", "mode": "whole"},
    "mmseg": {"size": (1024, 2048), "mode": "whole"},
}


class EvaluationConfig(Section):
    """How targets are scored, at the end of a run and by `evaluate`.

    Held-out source data is seen whole at `data.size`, whatever stands here.
    """

    preset: Literal["rein", "tqdm", "famix", "mmseg"] | None = (
        None  # a published protocol; keys that are given beside it replace its own
    )
    size: Count | tuple[Count, Count] | Literal["own"] | None = (
        # Pixels of the shorter side; or [height, width] that images just fit into, lying or standing;
        # own: as they are; null: data.size
        None
    )
    unresized: tuple[tuple[Count, Count], ...] = ()  # [height, width] of images that stay as they are
    mode: Literal["whole", "slide"] = (
        "whole"  # slide: in windows, whose logits are averaged where they overlap
    )
    crop: tuple[Count, Count] = (512, 512)  # height, width of a window
    stride: tuple[Count, Count] = (341, 341)  # from one window to the next, down and across
    flip: bool = False  # average with the mirror image's probabilities
    scales: Annotated[tuple[Annotated[Number, Field(ge=0.1, le=10)], ...], Field(min_length=1)] = (
        1.0,  # factors on the size; the probabilities of several are averaged
    )
    labels: Literal["own", "test"] = (
        "own"  # size at which labels are compared: their own, or what the model sees
    )
    batch: Count = 1  # images of one size that the model sees at once
    workers: Annotated[Whole, Field(ge=0)] | None = None  # loader processes per rank; null: data.workers

    @field_validator("size", mode="wrap")
    @classmethod
    def _one_rule_of_size(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:  # one for each kind of value that it may be
            raise ValueError("pixels of the shorter side (1 or more), [height, width], own or null") from None

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, value: Any) -> Any:
        name = value.get("preset") if isinstance(value, dict) else None
        return {**PRESETS[name], **value} if isinstance(name, str) and name in PRESETS else value

    @model_validator(mode="after")
    def _windows_leave_no_gap(self) -> EvaluationConfig:
        if self.stride[0] > self.crop[0] or self.stride[1] > self.crop[1]:
            raise ValueError(
                f"stride is at most crop, or pixels between windows are never seen; got stride "
                f"{list(self.stride)} and crop {list(self.crop)}; give a smaller stride or a larger crop"
            )
        return self
