"""What the model of many machines is told of a job: figures measured here, counted, and assumed.

Every figure has its origin in ``inputs``, which `ppar-dist doctor --nodes` prints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ppar_dist.class_sets import ClassSet
from ppar_dist.config.schema import Config
from ppar_dist.data.batches import Batching, batching
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.device_cost import (
    LOADER_MS,
    MFU,
    ImageCost,
    cpu_image_s,
    images_per_second,
    loader_ms,
)
from ppar_dist.doctor.failure_cost import Restart, Save, job_mtbf_s
from ppar_dist.doctor.findings import counted, size
from ppar_dist.doctor.machine import usable_cores
from ppar_dist.doctor.probes import copy_rate, existing_parent, hash_rate, write_rate
from ppar_dist.doctor.scale import FLOAT, Link, Machines, Step, Work, predict
from ppar_dist.models.segmentor import build_segmentor
from ppar_dist.training.device_peaks import peak_tflops
from ppar_dist.training.engine import BUCKET_ELEMENTS

GPU = "H100"  # where none is named and none is here
NODE_MTBF_DAYS = 42.0  # of a machine of 8: 7.9 h between failures of jobs of 1,024 GPUs (arXiv 2410.21680)
NETWORK_GBPS = 400.0  # a machine's adapters; of machines without GPUs:
CPU_NETWORK_GBPS = 10.0
REACHED = 0.8  # of a link's rate on its data sheet
NVLINK = Link(3.4e-6, REACHED * 450e9)  # H100's data sheet: 900 GB/s, both directions
NETWORK_LATENCY_S = 9.6e-6  # this and NVLink's: NCCL's own model, src/graph/tuning.cc, ring, simple protocol
LOOPBACK = Link(
    170e-6, 1.0e9
)  # gloo between ranks of a machine, as `python -m benchmarks.scale.gloo` measured
CPU_LATENCY_S = 200e-6
CALL_S = 5e-6  # of the host for each call that reaches a GPU
COMPILED = 1 / 3  # of the calls are left with engine.compile
SPREAD = 0.02  # standard deviation of a rank's step, as a share
IMAGE_BYTES = 1.0e6  # of a large frame and its label
GPU_CORES = 14  # for each GPU: 112 in 8-GPU machines of the kind
QUEUED_S = 120.0  # until Slurm starts a job again
IMPORTS_S = 5.7  # docs/performance.md
BUILD_S = 5.7  # of a ViT-L (`python -m benchmarks.scale.start`)
COMPILE_S = 60.0
WRITING_SLOWS = 0.02  # of the seconds of a write, where a core is free (docs/performance.md)
_FIRST_BATCH_S = 0.1  # docs/performance.md, besides decoding
_SMALL_FLOPS = 50e9  # of an image: up to here a CPU is timed
_MANY = 1_000_000  # frozen parameters that a checkpoint links instead of writing them again
_QUICK_BYTES, _PROBE_BYTES = 8 << 20, 64 << 20


@dataclass(frozen=True)
class Input:
    """A figure of the model, as text, and where it comes from."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True)
class SaveBytes:
    """Bytes of a checkpoint: written by rank 0, by its machine, by all, and all that a resume reads."""

    main: float
    machine: float
    written: float
    whole: float


@dataclass(frozen=True)
class Outlook:
    """A job as the model sees it; ``batch`` is not the configuration's where that does not divide."""

    device: str
    batch: int
    work: Work
    machines: Machines
    save: Save
    restart: Restart
    mtbf_s: float
    sizes: SaveBytes
    inputs: tuple[Input, ...]

    @property
    def step(self) -> Step:
        """Predicted."""
        return predict(self.work, self.machines)


def outlook(case: ConfigCase) -> Outlook:
    """Measure what can be measured here, and take the rest as assumed.

    Raises:
        UserError: the model cannot be built.
    """
    inputs: list[Input] = []
    cost, on_gpu = case.image_cost, _on_gpu(case)
    machines = _machines(case, on_gpu, inputs)
    cut = _cut(case.config, machines.ranks)
    device, image_s, host_s = _device(case, cost, on_gpu, inputs)
    work = _work(case, cost, cut, image_s, host_s, on_gpu, inputs)
    sizes = save_bytes(case.config, cost, machines)
    copying, hashing = copy_rate(), hash_rate()
    inputs.append(Input("copying, hashing", f"{size(copying)}/s, {size(hashing)}/s", "measured here"))
    save = save_cost(case.config, sizes, machines, copying, hashing)
    restart = restart_cost(case.config, sizes, machines, copying, hashing, work)
    inputs.append(
        Input(
            "restart",
            ", ".join(f"{name.replace('_', ' ')} {value:.1f} s" for name, value in vars(restart).items()),
            "noticed: faults.peer_s; queued, compile: assumed, not run; imports, build: measured "
            "(docs/scale.md); resume, first batch: computed",
        )
    )
    days = case.cluster.mtbf_days if case.cluster is not None else None
    mtbf_s = job_mtbf_s(86400 * (days or NODE_MTBF_DAYS), machines.nodes)
    origin = "told" if days else "assumed: a published figure (docs/scale.md)"
    inputs.append(Input("between failures", f"{days or NODE_MTBF_DAYS:g} days of a machine", origin))
    return Outlook(
        device,
        cut.global_batch,
        work,
        machines,
        save,
        restart,
        mtbf_s,
        sizes,
        tuple(inputs),
    )


def save_bytes(config: Config, cost: ImageCost, machines: Machines) -> SaveBytes:
    """Of a checkpoint after the first: what stays the same is linked, and each rank writes its moments."""
    trained, frozen = FLOAT * cost.trained, FLOAT * (cost.parameters - cost.trained)
    moments, bank = 2 * trained, config.ppar.bank
    teacher = FLOAT * cost.parameters if config.ppar.enabled and bank.teacher != "student" else 0
    average = trained if config.train.weight_average is not None else 0
    again = trained + average + (frozen if frozen < FLOAT * _MANY else 0)
    again += teacher if bank.teacher != "frozen" else 0
    each = moments / machines.ranks
    return SaveBytes(
        main=again + each,
        machine=again + each * machines.gpus,
        written=again + moments,
        whole=trained + frozen + moments + teacher + average,
    )


def save_cost(config: Config, sizes: SaveBytes, machines: Machines, copying: float, hashing: float) -> Save:
    """Blocked while rank 0 copies; then written by each, read back and hashed."""
    copied = sizes.main / copying
    written = sizes.machine / machines.storage_each() + sizes.main / hashing
    if not config.checkpoint.background:
        return Save(copied + written)
    return Save(copied + WRITING_SLOWS * written, written)


def restart_cost(
    config: Config, sizes: SaveBytes, machines: Machines, copying: float, hashing: float, work: Work
) -> Restart:
    """A machine has died; rank 0 verifies the newest checkpoint, then every machine reads all of it."""
    reading = sizes.whole / hashing + sizes.whole / machines.storage_each() + sizes.whole / copying
    return Restart(
        noticed=config.faults.peer_s,
        queued=QUEUED_S,
        imports=IMPORTS_S,
        build=BUILD_S,
        resume=reading,
        first_batch=_FIRST_BATCH_S + work.micro_batch * work.loader_s,
        compile=COMPILE_S if config.engine.compile else 0.0,
    )


def buffer_bytes(config: Config, classes: ClassSet, width: int) -> int:
    """Of the one sum of a step: with the method, a sum and a count for each source, class and dimension."""
    sources = len(config.data.sources)
    return FLOAT * sources * (classes.num_classes * (width + 1) if config.ppar.enabled else 8)


def _on_gpu(case: ConfigCase) -> bool:
    """Whether it computes on GPUs: on those named or here, or because a CPU would take too long."""
    if case.config.engine.device == "cpu":
        return False
    if case.device is not None or torch.cuda.is_available():
        return True
    return case.image_cost.train_flops > _SMALL_FLOPS


def _machines(case: ConfigCase, on_gpu: bool, inputs: list[Input]) -> Machines:
    told = case.cluster
    assert told is not None
    ranks, here = case.ranks_each, told.gpus_per_node is None
    cores = told.cores_per_node or (usable_cores() if here else ranks * GPU_CORES)
    inputs.append(Input("cores of a machine", str(cores), _origin(told.cores_per_node, here)))
    gbps = told.network_gbps or (NETWORK_GBPS if on_gpu else CPU_NETWORK_GBPS)
    latency = NETWORK_LATENCY_S if on_gpu else CPU_LATENCY_S
    inside = NVLINK if on_gpu else LOOPBACK
    value = f"{gbps:g} Gbit/s, {1e6 * latency:g} µs; inside {inside.bytes_per_s / 1e9:g} GB/s"
    origin = _origin(told.network_gbps, False) + f"; {REACHED:.0%} of it is reached: assumed"
    inputs.append(Input("network of a machine", value, origin))
    if told.storage_gbps is None:
        amount = _QUICK_BYTES if case.quick else _PROBE_BYTES
        rate = write_rate(existing_parent(case.config.run.dir), amount)
    else:
        rate = told.storage_gbps * 1e9 / 8
    origin = "told" if told.storage_gbps else "measured here, writing to run.dir; reading taken as alike"
    inputs.append(Input("storage of a machine", f"{size(rate)}/s", origin))
    return Machines(case.nodes, ranks, inside, Link(latency, REACHED * gbps * 1e9 / 8), cores, rate)


def _origin(told: float | None, here: bool) -> str:
    return "told" if told is not None else "measured here" if here else "assumed"


def _cut(config: Config, ranks: int) -> Batching:
    """The global batch, or the smallest larger one that divides among the ranks."""
    batch = -(-config.train.global_batch // ranks) * ranks
    train = config.train.model_copy(update={"global_batch": batch})
    return batching(config.model_copy(update={"train": train}), ranks)


def _device(case: ConfigCase, cost: ImageCost, on_gpu: bool, inputs: list[Input]) -> tuple[str, float, float]:
    """Its name, seconds for an image, and the host's seconds for a micro-batch."""
    if not on_gpu:
        model = build_segmentor(case.config, case.classes, load_weights=False)[0]
        seconds = cpu_image_s(case.config, model)
        text = f"{1000 * seconds:.1f} ms for an image on {counted(torch.get_num_threads(), 'thread')}"
        inputs.append(Input("device", text, "measured here, on the CPU; no teacher"))
        return "CPU", seconds, 0.0
    from ppar_dist.doctor.device import named  # it imports what tells of devices

    name = named(case)
    peak = case.config.engine.peak_tflops or peak_tflops(name) or 0.0
    rate = images_per_second(cost, peak)
    text = f"{name}, {peak:g} TFLOPS: {rate:.0f} images/s"
    inputs.append(Input("device", text, f"operations counted; {MFU:.0%} of the peak: assumed, not run"))
    calls = cost.calls * (COMPILED if case.config.engine.compile else 1)
    origin = f"{cost.calls:,.0f} calls counted; {1e6 * CALL_S:g} µs each"
    origin += " and a third of them left by engine.compile: assumed" if calls < cost.calls else ": assumed"
    inputs.append(Input("host", f"{1000 * calls * CALL_S:.0f} ms for a micro-batch", origin))
    return name, 1 / rate, calls * CALL_S


def _work(
    case: ConfigCase,
    cost: ImageCost,
    cut: Batching,
    image_s: float,
    host_s: float,
    on_gpu: bool,
    inputs: list[Input],
) -> Work:
    config = case.config
    indexes = [index for _, index in case.sources] if case.sources_open else []
    milliseconds = loader_ms(config, indexes) if indexes else LOADER_MS
    stored = _stored_bytes(indexes) if indexes else IMAGE_BYTES
    origin = "measured on the sources here" if indexes else "assumed: the sources are not here"
    text = f"{milliseconds:.1f} ms of a core and {size(stored)} for an image, "
    text += f"{counted(config.data.workers, 'worker')} a rank"
    inputs.append(Input("loader", text, origin))
    inputs.append(Input("spread of a rank's step", f"{SPREAD:.0%}", "assumed"))
    return Work(
        local_batch=cut.local_batch,
        micro_batch=cut.micro_batch,
        image_s=image_s,
        host_s=host_s,
        trained=cost.trained,
        zero_stage=config.engine.zero_stage,
        bucket_bytes=FLOAT * BUCKET_ELEMENTS,
        buffer_bytes=buffer_bytes(config, case.classes, case.segmentor.backbone.embed_dim),
        overlaps=on_gpu,
        loader_s=milliseconds / 1000,
        workers=config.data.workers,
        image_bytes=stored,
        spread=SPREAD,
    )


def _stored_bytes(indexes: list[DomainIndex]) -> float:
    """Of an image and its label, on average over the sources' shards."""
    everything = sum(shard.bytes for index in indexes for shard in index.reader.shards)
    return everything / max(1, sum(len(index) for index in indexes))
