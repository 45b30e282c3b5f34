"""``python -m ppar_dist``: the command line, also what the DeepSpeed launcher starts on each rank."""

import sys


def run() -> None:
    """Entry point of the ``ppar-dist`` script."""
    if sys.argv[1:2] == ["health"]:  # called every few seconds, beside the training: it must be light
        from ppar_dist.monitoring.health import main as check

        sys.exit(check(sys.argv[2:]))
    from ppar_dist.cli.parser import main

    sys.exit(main())


if __name__ == "__main__":
    run()
