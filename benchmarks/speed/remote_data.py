"""What reading shards from object storage costs: a real object server behind a slow line, on one machine.

    python -m benchmarks.speed.remote_data shards/camvid_0016E5 --rounds 3

Starts the object server of the tests (OpenStack Swift; tests/cluster/install.sh has its packages) and a proxy
that delays each request by 20 to 100 ms and passes 100 MB/s. Every round reads the same positions of the same
order, by one loader process with the default augmentation:

* ``local``                 from the folder;
* ``cold, none ahead``      nothing on the node, each read waited for;
* ``cold``                  nothing on the node, ``data.cache.ahead`` reads under way;
* ``cold, single samples``  the same, a read fetches one sample, not ``data.block``;
* ``cold, whole shards``    the same, a read fetches a whole shard;
* ``warm``                  the node holds all that is read.

Printed: seconds to the first batch, images per second after it, requests and bytes. A figure is the median
over rounds; a ratio is the median of the rounds' ratios to ``local``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import s3fs

from ppar_dist.config.load import parse_config
from ppar_dist.config.schema import Config
from ppar_dist.data.loader import train_loader
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.sources import node_storage
from tests.cluster.fault_proxy import FaultProxy, fault_proxy
from tests.cluster.object_server import object_server
from tests.cluster.storage_faults import Latency

BATCH, BUCKET, WHOLE = 8, "benchmark", 1 << 30
CONTESTANTS = ("local", "cold, none ahead", "cold", "cold, single samples", "cold, whole shards", "warm")


class Figures(NamedTuple):
    """Of one reading."""

    first_s: float
    images_s: float
    requests: int
    megabytes: float


def main() -> None:
    """Run the rounds and print medians and ratios."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("domain", type=Path, help="a domain folder")
    options.add_argument("--images", type=int, default=304)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--latency", type=float, nargs=2, default=(0.02, 0.1), metavar=("LEAST", "MOST"))
    options.add_argument("--bandwidth", type=float, default=100e6, help="bytes per second")
    args = options.parse_args()
    with (
        tempfile.TemporaryDirectory() as scratch,
        object_server(Path(scratch) / "server") as server,
        fault_proxy(server.port) as proxy,
    ):
        os.environ.update(server.environment(proxy.endpoint))
        upload(s3fs.S3FileSystem(endpoint_url=server.endpoint), args.domain)
        proxy.add(Latency(*args.latency))
        proxy.bandwidth = args.bandwidth
        rounds = [measure(args, Path(scratch), proxy) for _ in range(args.rounds)]
    report(rounds)


def upload(store: s3fs.S3FileSystem, domain: Path) -> None:
    """Put a domain on the server."""
    store.mkdir(BUCKET)
    for path in domain.iterdir():
        if path.is_file():
            store.put_file(str(path), f"{BUCKET}/{domain.name}/{path.name}")


def measure(args: argparse.Namespace, scratch: Path, proxy: FaultProxy) -> dict[str, Figures]:
    """One reading of each contestant."""
    found = {}
    for name in CONTESTANTS:
        cache = scratch / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        if name == "warm":
            read(config_of(args, name, cache), args.images, None, proxy)
        proxy.forget()
        found[name] = read(config_of(args, name, cache), args.images, together_of(name), proxy)
    return found


def together_of(name: str) -> int | None:
    """Samples that a read fetches; None: as the configuration says."""
    return {"cold, single samples": 1, "cold, whole shards": WHOLE}.get(name)


def config_of(args: argparse.Namespace, name: str, cache: Path) -> Config:
    """One source, whole images."""
    root = str(args.domain.parent) if name == "local" else f"s3://{BUCKET}"
    ahead = 0 if name == "cold, none ahead" else 8
    index = DomainIndex.open(args.domain)
    data: dict[str, Any] = {"root": root, "classes": index.class_set, "sources": [args.domain.name]}
    data |= {"workers": 1, "holdout": 0, "cache": {"folder": str(cache), "ahead": ahead}}
    tree = {"run": {"dir": "unused"}, "data": data, "train": {"steps": 1, "global_batch": BATCH}}
    return parse_config(tree | {"model": {"backbone": {"kind": "open_clip"}}})


def read(config: Config, images: int, together: int | None, proxy: FaultProxy) -> Figures:
    """Open the domain as a rank does, and read."""
    node = node_storage(config)
    node = node if together is None else replace(node, together=together)
    began = time.perf_counter()
    place = config.data.root / config.data.sources[0].name
    indexes = [DomainIndex.open(place, config.data.max_bad_ratio, node)]
    batches = train_loader(config, indexes, 0, 1, 0, images // BATCH * BATCH)
    next(batches)
    first = time.perf_counter()
    count = sum(len(batch) for batch in batches)
    seconds = time.perf_counter() - first
    sent = sum(each.sent for each in proxy.requests) / 1e6
    return Figures(first - began, count / seconds, len(proxy.requests), sent)


def report(rounds: list[dict[str, Figures]]) -> None:
    """The table of medians."""
    print("| read | first batch, s | images/s | ratio to local | requests | MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in CONTESTANTS:
        own = [each[name] for each in rounds]
        ratio = statistics.median(each[name].images_s / each["local"].images_s for each in rounds)
        first, speed = (statistics.median(figures) for figures in list(zip(*own, strict=True))[:2])
        last = own[-1]
        print(
            f"| {name} | {first:.2f} | {speed:.0f} | {ratio:.2f} | {last.requests} | {last.megabytes:.1f} |"
        )


if __name__ == "__main__":
    main()
