"""What a job will need of its GPUs, told on any machine: cost of an image, memory, micro-batch, loader."""

from __future__ import annotations

import torch

from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.device_cost import (
    LOADER_MS,
    MFU,
    RESERVED,
    images_per_second,
    largest_micro_batch,
    loader_ms,
    rank_bytes,
    rank_memory,
)
from ppar_dist.doctor.findings import Check, Finding, counted, failure, ok, size, warning
from ppar_dist.errors import UserError
from ppar_dist.training.device_peaks import device_names, peak_tflops

_ANY = "cuda"  # the device here; without one, the following
_DEFAULT = "H100"
_MOST_CORES = 128  # for a GPU: more than its machine has
_SIZES_GB = (24, 40, 80)  # of memory, as devices are sold


def check_device(name: str) -> None:
    """Refuse a name that no peak is known of.

    Raises:
        UserError: it is neither ``cuda`` nor in the table.
    """
    if name != _ANY and peak_tflops(name) is None:
        raise UserError(f"--device is {_ANY} or one of {', '.join(device_names())}, got {name!r}; correct it")


def image(case: ConfigCase) -> Finding:
    """Parameters and operations."""
    try:
        cost = case.image_cost
    except UserError as error:
        return failure(str(error), "correct model.* as the message says")
    teacher = f", {_giga(cost.teacher_flops)} of a teacher on average" if cost.teacher_flops else ""
    return ok(
        f"{_giga(cost.forward_flops)} forward, {_giga(cost.train_flops)} forward and backward"
        f"{teacher}; {cost.fp32_flops / cost.train_flops:.1%} of them in fp32",
        **vars(cost),
    )


def memory(case: ConfigCase) -> Finding | None:
    """What a rank holds, part by part."""
    if case.batching is None:
        return None  # the check of the batch says why
    cost, cut = case.image_cost, case.batching
    held = rank_memory(cost, case.config, case.world_size)
    peak = rank_bytes(cost, held, cut)
    parts = {name: value for name, value in vars(held).items() if value}
    parts["activations"] = round(cut.micro_batch * cost.activation_bytes)
    listed = ", ".join(f"{name} {size(value)}" for name, value in parts.items())
    text = f"a rank of {case.world_size} needs {size(peak)} and {size(RESERVED)} for libraries: {listed}"
    facts = parts | {"peak_bytes": round(peak), "micro_batch": cut.micro_batch}
    there = _memory_here()
    if there is not None and peak + RESERVED > there:
        return failure(f"{text}; a GPU here has {size(there)}", "lower train.micro_batch", **facts)
    return ok(text, **facts)


def micro_batch(case: ConfigCase) -> Finding:
    """The largest micro-batch, by a device's memory."""
    cost = case.image_cost
    held = rank_memory(cost, case.config, case.world_size)
    most = {gb: largest_micro_batch(cost, held, gb * 1e9) for gb in _SIZES_GB}
    by_size = ", ".join(f"{images} with {gb} GB" for gb, images in most.items())
    each = size(cost.activation_bytes)
    return ok(
        f"at most {by_size}: {each} of activations for each image",
        activation_bytes=cost.activation_bytes,
        largest_micro_batch=most,
    )


def loader(case: ConfigCase) -> Finding:
    """The rate of a device, and the cores that load images as fast."""
    name = named(case)
    peak = peak_tflops(name)
    if peak is None:
        return warning(f"no peak is known of {name}", f"name a device: --device {_DEFAULT}")
    rate = images_per_second(case.image_cost, peak)
    milliseconds, source = _loader_ms(case)
    needed, workers = rate * milliseconds / 1000, case.config.data.workers
    text = (
        f"{name} would train {rate:.0f} images/s at {MFU:.0%} of {peak:g} TFLOPS; to load as fast takes "
        f"{needed:.1f} cores for each, at {milliseconds:.0f} ms an image ({source})"
    )
    facts = {"device": name, "peak_tflops": peak, "mfu": MFU, "images_per_second": rate}
    facts |= {"loader_ms": milliseconds, "loader_cores": needed}
    if needed > _MOST_CORES:
        return warning(
            f"{name} would train {rate:.0f} images/s at {MFU:.0%} of {peak:g} TFLOPS, and to load as fast "
            f"takes more than {_MOST_CORES} cores for each, at {milliseconds:.0f} ms an image ({source}): so "
            "small a model waits for its images there",
            "train it on a smaller GPU or on the CPU, or choose a larger model",
            **facts,
        )
    if needed > max(1, workers):
        share = max(1, workers) / needed
        return warning(
            f"{text}; data.workers={workers} keeps it busy for {share:.0%} of the time at most",
            f"set data.workers to {needed:.0f} where there are as many cores for each GPU",
            **facts,
        )
    return ok(text, **facts)


def _loader_ms(case: ConfigCase) -> tuple[float, str]:
    """Milliseconds for an image, and where the figure is from."""
    if not case.sources_open:
        return LOADER_MS, "assumed: the sources are not here"
    indexes = [index for _, index in case.sources]
    return loader_ms(case.config, indexes), f"measured on {counted(len(indexes), 'source')} here"


def named(case: ConfigCase) -> str:
    """The device to tell of: the one named, the one here, else an H100."""
    if case.device not in (None, _ANY):
        return str(case.device)
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else _DEFAULT


def _memory_here() -> int | None:
    """Bytes of the smallest GPU; None without one."""
    sizes = [torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count())]
    return min(sizes, default=None)


def _giga(flops: float) -> str:
    return f"{flops / 1e9:,.0f} GFLOP"


CHECKS = (
    Check("cost of an image", image),
    Check("device memory", memory),
    Check("largest micro-batch", micro_batch),
    Check("loader rate", loader),
)
