"""The all-reduce of real ranks over gloo beside the model of one.

    python -m benchmarks.scale.gloo [--ranks 2 3] [--rounds 5]

Ranks are processes of this machine, one thread each, and sum a tensor by the program's own `World.sum`. What
two ranks take for 8 bytes and for 64 MB gives latency and rate of the link (of a ring of 2); with these the
model predicts all other sizes and numbers of ranks. Medians over rounds; a ratio of 1 is as predicted. Ranks
that share cores also wait for each other, which the model does not know.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from benchmarks.arguments import described
from benchmarks.pages import markdown
from ppar_dist.doctor.scale import Link, Machines, ring_s

SIZES = (8, 37 * 1024, 1_000_000, 8_000_000, 64_000_000)  # bytes; the second is the one buffer of a step
_WARM_UP = 2


def rank_main(rounds: int) -> None:
    """One rank; rank 0 prints the median seconds for each size as JSON."""
    import torch

    from ppar_dist.distributed import rendezvous

    torch.set_num_threads(1)
    world = rendezvous.join()
    found = {}
    for size in SIZES:
        tensor, seconds = torch.ones(size // 4), []
        for _ in range(_WARM_UP + rounds):
            world.barrier()
            began = time.monotonic()
            world.sum(tensor)
            seconds.append(time.monotonic() - began)
            tensor.fill_(1)
        found[size] = statistics.median(seconds[_WARM_UP:])
    if world.is_main:
        print(json.dumps(found), flush=True)
    rendezvous.leave()


def measure(ranks: int, rounds: int, port: int) -> dict[int, float]:
    """Median seconds of an all-reduce by its bytes."""
    processes = []
    for rank in range(ranks):
        names = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": ranks,
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": 1,
        }
        environment = os.environ | {name: str(value) for name, value in names.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-m", "benchmarks.scale.gloo", "--rank", "--rounds", str(rounds)]
        pipe = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        processes.append(subprocess.Popen(command, env=environment, stdout=pipe, text=True))
    output = processes[0].communicate()[0]
    codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit(f"a rank ended with {codes}")
    return {int(size): seconds for size, seconds in json.loads(output.splitlines()[-1]).items()}


def fitted(two: dict[int, float]) -> Link:
    """The link between two ranks: their ring has 2 hops one after the other, and moves every byte once."""
    small, large = min(two), max(two)
    return Link(two[small] / 2, large / (two[large] - two[small]))


def main() -> None:
    """Print measured and predicted seconds, and their ratio."""
    parser = described(__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank_main(options.rounds)
        return
    found = {ranks: measure(ranks, options.rounds, 23500 + ranks) for ranks in sorted({2, *options.ranks})}
    link = fitted(found[2])
    print(f"link of 2 ranks: {1e6 * link.latency_s:.0f} µs, {link.bytes_per_s / 1e9:.2f} GB/s\n")
    rows = [["ranks", "bytes", "measured ms", "predicted ms", "measured / predicted"]]
    for ranks, seconds in found.items():
        machines = Machines(1, ranks, link, link, ranks, 1e9)
        for size, measured in seconds.items():
            predicted = ring_s(machines, size)
            figures = (f"{1000 * measured:.2f}", f"{1000 * predicted:.2f}", f"{measured / predicted:.2f}")
            rows.append([str(ranks), f"{size:,}", *figures])
    print(markdown(rows))


if __name__ == "__main__":
    main()
