"""``python -m ppar_dist``: the command line, also what the DeepSpeed launcher starts on each rank."""

import sys

from ppar_dist.cli import main


def run() -> None:
    """Entry point of the ``ppar-dist`` script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
