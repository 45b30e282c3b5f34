"""The command line of a benchmark."""

from __future__ import annotations

import argparse
from typing import Any


def described(text: str | None, **options: Any) -> argparse.ArgumentParser:
    """A parser whose help is a module's text as it stands; ``options`` are those of ``ArgumentParser``."""
    return argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter, **options
    )
