"""``tests.cluster.paced`` and ``tests.faults.poisoned`` in one rank.

python -m tests.cluster.paced_poison FIRST STOP ARGUMENTS…
"""

from __future__ import annotations

import sys

from ppar_dist.cli.parser import main
from tests.cluster.paced import pace
from tests.faults.poisoned import poison

if __name__ == "__main__":
    poison("loss", int(sys.argv[1]), int(sys.argv[2]))
    pace()
    sys.exit(main(sys.argv[3:]))
