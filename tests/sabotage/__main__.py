"""The command, or one of its ranks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import takewhile

from ppar_dist.cli import parser
from ppar_dist.launch import front
from ppar_dist.launch.rank import is_rank
from tests.sabotage import faults, numbers, pace, shards

KINDS = {
    "hold": pace.hold,
    "pace": pace.slow_down,
    "fault": faults.spoil,
    "heard": faults.note_what_is_heard,
    "poison": numbers.poison,
    "flip": numbers.flip,
    "shards": shards.change,
}


def main(arguments: Sequence[str]) -> int:
    """Put each sabotage where it belongs, then do what the command does."""
    words = list(takewhile(lambda word: word.partition("=")[0] in KINDS, arguments))
    rest = list(arguments[len(words) :])
    if is_rank() or "--nproc 1" in " ".join(rest):  # else a command that only starts ranks
        for word in words:
            kind, _, text = word.partition("=")
            KINDS[kind](*text.split(","))
    if rest[:1] == ["ppar_dist"]:  # the module that a launcher should have started
        return parser.main(rest[1:])
    for name, command in front.COMMANDS.items():
        front.COMMANDS[name] = lambda ranks, nodes, its=command: [*its(ranks, nodes), __package__, *words]
    return parser.main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
