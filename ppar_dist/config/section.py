"""The base of all sections of a configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all sections: immutable, and closed to keys it does not name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
