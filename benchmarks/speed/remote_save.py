"""What copying a checkpoint to object storage takes, and costs training meanwhile, on one machine.

    python -m benchmarks.speed.remote_save --parameters 29e6 --rounds 3

Starts the object server of the tests (OpenStack Swift; tests/cluster/install.sh has its packages). A round
publishes a checkpoint of AdamW, fp32, 12 bytes a parameter, and copies it by a thread, as training does,
while the main thread takes steps of matrix products:

* ``direct``  to the server;
* ``line``    through a proxy, in a process of its own, that delays each request by 20 to 100 ms and passes
  100 MB/s.

Printed: seconds and MB/s of the copy, and of a step the time meanwhile over that alone, before and after. The
server works on the same cores: what it takes is in these figures. Medians over rounds; the first warms up.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import s3fs
import torch

from benchmarks.speed.save import matmul, timed, training_state
from ppar_dist.checkpoint import Snapshot, discard, publish
from ppar_dist.run.mirror import Mirror
from ppar_dist.storage import remote
from ppar_dist.storage.location import Remote
from tests.cluster.fault_proxy import fault_proxy
from tests.cluster.object_server import ObjectServer, object_server
from tests.cluster.storage_faults import Latency

BUCKET = "benchmark"
_ALONE = 40  # steps timed alone, before and after each copy


class Copy(NamedTuple):
    """One copy."""

    seconds: float
    bytes: int
    slower: float


def main() -> None:
    """Run the rounds and print medians."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--parameters", type=float, default=29e6)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--latency", type=float, nargs=2, default=(0.02, 0.1), metavar=("LEAST", "MOST"))
    options.add_argument("--bandwidth", type=float, default=100e6, help="bytes per second")
    args = options.parse_args()
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as scratch,
        object_server(Path(scratch) / "server") as server,
        line(server.port, args) as endpoint,
    ):
        s3fs.S3FileSystem(
            key="test:tester", secret="testing", endpoint_url=server.endpoint, skip_instance_cache=True
        ).mkdir(BUCKET)
        endpoints = {"direct": server.endpoint, "line": endpoint}
        found: dict[str, list[Copy]] = {name: [] for name in endpoints}
        for number in range(args.rounds + 1):
            for name, place in endpoints.items():
                one = measure(server, place, Path(scratch) / name, number, int(args.parameters))
                if number:
                    found[name].append(one)
    report(found)


@contextmanager
def line(port: int, args: argparse.Namespace) -> Iterator[str]:
    """A proxy in a process of its own; yields its endpoint."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(theirs, port, tuple(args.latency), args.bandwidth), daemon=True
    )
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join(10)


def serve(pipe: Connection, port: int, latency: tuple[float, float], bandwidth: float) -> None:
    """Be the proxy until told to end."""
    with fault_proxy(port) as proxy:
        proxy.add(Latency(*latency))
        proxy.bandwidth = bandwidth
        pipe.send(proxy.endpoint)
        pipe.recv()


def measure(server: ObjectServer, endpoint: str, run: Path, number: int, parameters: int) -> Copy:
    """Publish a checkpoint, and copy it beside steps."""
    os.environ.update(server.environment(endpoint))
    remote._forget_drivers()
    step, run_at = matmul(), Remote(f"s3://{BUCKET}/{run.name}")
    folder = publish(run, Snapshot(number, training_state(parameters), {"state.json": "{}"}, {}))
    mirror = Mirror(run, run_at, remote.Storage(60.0), 60.0)
    mirror.open(lambda: None)
    alone, meanwhile, sent = [timed(step) for _ in range(_ALONE)], [], []
    began = time.perf_counter()
    thread = threading.Thread(target=lambda: sent.append(mirror.copy(folder, lambda steps: {steps[-1]})))
    thread.start()
    while thread.is_alive():
        meanwhile.append(timed(step))
    seconds = time.perf_counter() - began
    alone += [timed(step) for _ in range(_ALONE)]
    mirror.close()
    discard(folder)
    if not sent:
        raise SystemExit("the copy failed")
    return Copy(seconds, sent[0], statistics.median(meanwhile) / statistics.median(alone))


def report(found: dict[str, list[Copy]]) -> None:
    """The table."""
    print("| way | MB | copy, s | MB/s | a step meanwhile over alone (range) |")
    print("| --- | --- | --- | --- | --- |")
    for name, copies in found.items():
        seconds = statistics.median(copy.seconds for copy in copies)
        rate = statistics.median(copy.bytes / copy.seconds / 1e6 for copy in copies)
        slower = sorted(copy.slower for copy in copies)
        spread = f"{statistics.median(slower):.2f} ({slower[0]:.2f} to {slower[-1]:.2f})"
        print(f"| {name} | {copies[0].bytes / 1e6:.0f} | {seconds:.1f} | {rate:.0f} | {spread} |")


if __name__ == "__main__":
    main()
