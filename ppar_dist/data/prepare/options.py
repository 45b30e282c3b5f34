"""How a data set is prepared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppar_dist.errors import DataError
from ppar_dist.pictures import Span, check_span


@dataclass(frozen=True)
class Options:
    """How a data set is prepared.

    Attributes:
        limit: at most so many samples per domain, for a try.
        mapping: the mapping file of ``folder`` (see ``folder.py``).
        exclude: keys or file stems to leave out.
        skip_bad: go on without bad pairs, which are listed.
        jpeg: quality (1 to 100) at which images that are not JPEG are encoded as JPEG; None stores them as
            they came.
        span: values that become 0 and 255, of images with more than 8 bits.
        overwrite: replace a domain that was made with other options.
        processes: that work at the same time; None: as many as cores. The result does not depend on it.
        split_by: the rule by which domains are split (see ``Source.parted``); None is the usual one.
    """

    limit: int | None = None
    mapping: Path | None = None
    exclude: Sequence[str] = ()
    skip_bad: bool = False
    jpeg: int | None = None
    span: Span | None = None
    overwrite: bool = False
    processes: int | None = 1
    split_by: str | None = None

    def __post_init__(self) -> None:
        for name, value, most in (
            ("limit", self.limit, 0),
            ("processes", self.processes, 0),
            ("jpeg", self.jpeg, 100),
        ):
            if value is not None and not 1 <= value <= (most or value):
                raise DataError(f"--{name} is {f'from 1 to {most}' if most else 'at least 1'}, got {value}")
        if self.span is not None:
            check_span(self.span)

    def changing(self) -> dict[str, Any]:
        """Those that change what a domain holds, for its file."""
        digest = hashlib.sha256(self.mapping.read_bytes()).hexdigest()[:16] if self.mapping else None
        span = list(self.span) if self.span else None
        values: dict[str, Any] = {"limit": self.limit, "mapping": digest, "jpeg": self.jpeg, "range": span}
        values |= {"exclude": sorted(self.exclude) or None, "skip_bad": self.skip_bad or None}
        values["split_by"] = self.split_by
        return {name: value for name, value in values.items() if value is not None}


USUAL = Options()
