"""A model of a training step on many machines: what each part takes, and which one limits.

Pure functions of figures: nothing is measured here and torch is not loaded. All times are seconds, all sizes
bytes. `ppar-dist doctor --nodes` and `python -m benchmarks.scale` both use it; docs/scale.md says what it
leaves out. What failures cost is in failure_cost.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist

FLOAT = 4  # bytes: parameters are fp32, and gradients are summed in fp32 whatever engine.precision is
BACKWARD = 2 / 3  # of a forward and backward pass: a product has two products as its gradient
NOTABLE = 0.1  # share of a step from which on a part limits


@dataclass(frozen=True)
class Link:
    """What a message costs: ``latency_s``, and its bytes at ``bytes_per_s`` (one direction)."""

    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Machines:
    """The machines of a job, all alike.

    Attributes:
        nodes: machines.
        gpus: of each machine, one for each rank; without GPUs its ranks.
        inside: between GPUs of a machine.
        network: of a machine to the others, all its adapters together.
        cores: of a machine.
        storage: bytes per second that a machine reads or writes.
        storage_in_all: that the storage serves to all machines together.
    """

    nodes: int
    gpus: int
    inside: Link
    network: Link
    cores: int
    storage: float
    storage_in_all: float = math.inf

    @property
    def ranks(self) -> int:
        """Of all machines."""
        return self.nodes * self.gpus

    def storage_each(self) -> float:
        """Bytes per second for a machine while all of them use the storage."""
        return min(self.storage, self.storage_in_all / self.nodes)


@dataclass(frozen=True)
class Work:
    """What a step asks of a rank.

    Attributes:
        local_batch: images of a rank.
        micro_batch: of them at once; divides ``local_batch``.
        image_s: seconds of the device for an image, forward and backward, teacher included.
        host_s: seconds of Python for a micro-batch, whatever its images: launching what the device computes.
        trained: parameters with a gradient.
        zero_stage: ``engine.zero_stage``.
        bucket_bytes: of gradients that are summed at once.
        buffer_bytes: of the one sum of a step.
        overlaps: gradients are summed while the backward pass goes on (on GPUs with ZeRO).
        loader_s: seconds of a core for an image, from shard to crop.
        workers: loader processes of a rank; 0: the rank loads by itself.
        image_bytes: of an image and its label in a shard.
        spread: standard deviation of a rank's time for a step, as a share of the mean.
    """

    local_batch: int
    micro_batch: int
    image_s: float
    host_s: float
    trained: int
    zero_stage: int
    bucket_bytes: int
    buffer_bytes: int
    overlaps: bool
    loader_s: float
    workers: int
    image_bytes: float
    spread: float

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step."""
        return self.local_batch // self.micro_batch

    @property
    def pass_s(self) -> float:
        """Forward and backward pass of a micro-batch: the device and the host work side by side."""
        return max(self.micro_batch * self.image_s, self.host_s)


@dataclass(frozen=True)
class Step:
    """A predicted step, in seconds by part; what runs behind another part is not counted again.

    Attributes:
        images: of all ranks.
        compute: the device computes.
        host: the device waits for Python.
        stragglers: the mean rank waits for the slowest.
        gradients: their sum and the buffer's, as far as the backward pass does not hide them.
        parameters: with ZeRO, what ranks updated is sent to all.
        loader: the device waits for images to be decoded.
        storage: the device waits for images to be read.
    """

    images: int
    compute: float
    host: float
    stragglers: float
    gradients: float
    parameters: float
    loader: float
    storage: float

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by name, in the order of a step."""
        return {name: value for name, value in vars(self).items() if name != "images"}

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return sum(self.parts.values())

    @property
    def images_per_second(self) -> float:
        """Of all ranks."""
        return self.images / self.seconds

    @property
    def limit(self) -> str:
        """The largest part besides ``compute``, where it takes a tenth of the step; else ``compute``."""
        others = {name: value for name, value in self.parts.items() if name != "compute"}
        name = max(others, key=lambda each: others[each])
        return name if others[name] >= NOTABLE * self.seconds else "compute"


def ring_s(machines: Machines, size: float, passes: int = 2) -> float:
    """A ring through all ranks: ``passes`` 2 is an all-reduce, 1 an all-gather or a reduce-scatter.

    Of R ranks each sends R - 1 times a part of size/R in a pass. Every hop adds its latency to the way of a
    part; the slowest hop sets the rate. Bandwidth-optimal (Patarasuk and Yuan, J. Parallel Distrib. Comput.
    69, 2009); with latencies by hop as in NCCL's src/graph/tuning.cc.
    """
    ranks, nodes = machines.ranks, machines.nodes
    if ranks == 1:
        return 0.0
    latency = (ranks - nodes) * machines.inside.latency_s + (nodes - 1) * machines.network.latency_s
    return passes * (latency + (ranks - 1) / ranks * size / _slowest(machines))


def tree_s(machines: Machines, size: float) -> float:
    """An all-reduce: parts by a ring inside each machine, a double binary tree between machines, and back.

    Between N machines 2 ⌈log₂ N⌉ latencies, and each byte goes in and out of a machine once up and once down
    (Sanders, Speck and Träff, Parallel Computing 35, 2009; NCCL's "tree").
    """
    gpus, nodes = machines.gpus, machines.nodes
    inside = 2 * (
        (gpus - 1) * machines.inside.latency_s + _through(machines.inside, size * (gpus - 1) / gpus)
    )
    if nodes == 1:
        return inside
    hops = 2 * math.ceil(math.log2(nodes))
    return inside + hops * machines.network.latency_s + 2 * _through(machines.network, size)


def all_reduce_s(machines: Machines, size: float) -> float:
    """The faster of ring and tree, as NCCL chooses by a model of its own."""
    return min(ring_s(machines, size), tree_s(machines, size))


def expected_slowest(ranks: int, spread: float) -> float:
    """Mean of the slowest of so many ranks, in units of a rank's mean; 1 for one rank.

    Expected maximum of independent normal times, Φ⁻¹((R - 0.375) / (R + 0.25)) deviations above the mean
    (Blom, Statistical Estimates and Transformed Beta-Variables, 1958).
    """
    return 1 + spread * NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def predict(work: Work, machines: Machines) -> Step:
    """The step of a job on these machines."""
    passes = work.accumulation * work.pass_s
    compute = work.local_batch * work.image_s
    stragglers = passes * (expected_slowest(machines.ranks, work.spread) - 1)
    gradients, parameters = _gradients_s(work, machines), _parameters_s(work, machines)
    busy = passes + stragglers + gradients + parameters
    loading, reading = _loading_s(work, machines), _reading_s(work, machines)
    if work.workers:  # else one after the other, in the rank
        wait = max(0.0, max(loading, reading) - busy)
        loading, reading = (wait, 0.0) if loading >= reading else (0.0, wait)
    return Step(
        work.local_batch * machines.ranks,
        compute,
        passes - compute,
        stragglers,
        gradients,
        parameters,
        loader=loading,
        storage=reading,
    )


def efficiency(work: Work, machines: Machines, alone: Work | None = None) -> float:
    """Images per second of a rank, as a share of what a rank alone on a machine reaches.

    ``alone`` is the step of that rank; None: with as many images as each has here (weak scaling).
    """
    one = replace(machines, nodes=1, gpus=1)
    single = predict(work if alone is None else alone, one).images_per_second
    return predict(work, machines).images_per_second / machines.ranks / single


def stops_at(reached: Callable[[int], float], numbers: list[int], least: float = 0.5) -> int | None:
    """The first of rising ``numbers`` at which ``reached`` is below ``least``; None: at none."""
    return next((number for number in numbers if reached(number) < least), None)


def _gradients_s(work: Work, machines: Machines) -> float:
    """Seconds that the sums take beyond the backward pass that hides them.

    DeepSpeed sums all gradients with ZeRO 1 and 2 too (an all-reduce of each bucket, of which a rank keeps
    its part); with ZeRO 2 after every micro-batch, else after the last. Without ZeRO nothing runs behind.
    """
    size = FLOAT * work.trained
    buckets = max(1, math.ceil(size / work.bucket_bytes)) if work.zero_stage else 1
    times = work.accumulation if work.zero_stage == 2 else 1
    gradients = times * buckets * all_reduce_s(machines, size / buckets)
    buffer, backward = all_reduce_s(machines, work.buffer_bytes), BACKWARD * work.pass_s
    if work.overlaps and work.zero_stage:
        return max(0.0, gradients + buffer - times * backward)
    return gradients + max(0.0, buffer - backward)


def _parameters_s(work: Work, machines: Machines) -> float:
    """With ZeRO: the sum of the gradient's norm, then each rank's updated part goes to all."""
    if not work.zero_stage:
        return 0.0
    return all_reduce_s(machines, 8) + ring_s(machines, FLOAT * work.trained, passes=1)


def _loading_s(work: Work, machines: Machines) -> float:
    """Seconds in which the loaders of a machine make what its ranks need for a step."""
    if not work.workers:
        return work.local_batch * work.loader_s
    cores = min(work.workers * machines.gpus, max(1, machines.cores - machines.gpus))  # each rank has its own
    return work.local_batch * machines.gpus * work.loader_s / cores


def _reading_s(work: Work, machines: Machines) -> float:
    return work.local_batch * machines.gpus * work.image_bytes / machines.storage_each()


def _slowest(machines: Machines) -> float:
    """Bytes per second of a ring's slowest hop."""
    hops = [machines.inside.bytes_per_s] if machines.gpus > 1 else []
    return min(hops + ([machines.network.bytes_per_s] if machines.nodes > 1 else []))


def _through(link: Link, size: float) -> float:
    return size / link.bytes_per_s
