"""How long the fuzz tests search.

``PPAR_FUZZ_EXAMPLES`` is the number of examples of each test. Without it a small number is drawn, the same
each time, so that a change that breaks nothing never turns red by chance; with it every run draws new ones.
"""

from __future__ import annotations

import os
import tempfile
from datetime import timedelta
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

_EXAMPLES = os.environ.get("PPAR_FUZZ_EXAMPLES")
_NUMBER = int(_EXAMPLES or 60)
_FAILURES = Path(tempfile.gettempdir()) / "ppar-dist-fuzz"  # tried first by the next long run

fuzzed = settings(
    max_examples=_NUMBER,
    derandomize=_EXAMPLES is None,
    database=DirectoryBasedExampleDatabase(_FAILURES) if _EXAMPLES else None,
    deadline=timedelta(seconds=30),  # of one example: none hangs; a machine may stall for seconds
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    print_blob=True,
)
fuzzed_less = settings(
    fuzzed, max_examples=max(1, _NUMBER // 4)
)  # where one example takes a tenth of a second
