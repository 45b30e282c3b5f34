"""What a pretended device is asked to do: calls, waits of the host for it, copies and collectives by phase.

FakeTensors have no values. Where the program asks for one, the probe answers as a run without faults would
see it, or, with ``finite`` False, as one whose gradient is not a number.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from ppar_dist.doctor.device_probe import DeviceProbe, is_composite

aten = torch.ops.aten
_OWNERS = ("ppar_dist", "deepspeed", "timm", "open_clip", "torchvision")


class PretendedDevice(DeviceProbe):
    """The device while it is entered.

    Attributes:
        waits: times that the host waits for the device, by who waits, why and in which phase.
        copies: bytes between host and device, by direction and by who copies.
        collectives: by phase, name and dtype; calls and bytes.
        phase: what the program says it is doing.
        finite: whether what the program asks about is a number.
    """

    def __init__(self) -> None:
        super().__init__("cuda")
        self.phase = ""
        self.finite = True

    def reset(self) -> None:
        super().reset()
        self.waits: Counter[tuple[str, str, str, str]] = Counter()
        self.copies: Counter[tuple[str, str]] = Counter()
        self.collectives: Counter[tuple[str, str, str]] = Counter()
        self.sent: Counter[tuple[str, str, str]] = Counter()
        self.slow: Counter[str] = Counter()  # FLOPs in fp32 by who asks for them

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet is torch.ops.prim.device:
            return func(*args, **kwargs)
        if is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        answer = self._answer(packet, args, kwargs)
        if answer is not None:
            return answer
        self._note_collective(func, args, kwargs)
        before = self.flops[torch.float32]
        out = func(*args, **kwargs)
        self._note_copy(packet, args, kwargs, out)
        self.count(func, args, kwargs, out)
        if self.flops[torch.float32] > before:
            self.slow[caller()[1]] += self.flops[torch.float32] - before
        return out

    def wait(self, why: str) -> None:
        """The host waits for the device here."""
        owner, place = caller()
        self.waits[owner, place, why, self.phase] += 1

    def value(self, tensor: Tensor) -> bool | float | int:
        """What an element of a FakeTensor is said to be."""
        if tensor.dtype == torch.bool:
            # DeepSpeed asks whether something is wrong, the product whether all is right.
            return self.finite != (caller()[0] == "deepspeed")
        return 1.0 if tensor.is_floating_point() else 1

    def _answer(self, packet: Any, args: Any, kwargs: Any) -> Any:
        """The result of a call whose shape or value depends on data; None for all others."""
        here = any(self.is_here(each) for each in tree_leaves(args))
        if packet is aten._local_scalar_dense:
            if here:
                self.wait("item")
            return self.value(args[0])
        if packet is aten.bincount:
            length = kwargs.get("minlength", args[2] if len(args) > 2 else 0)
            return self._told("bincount", here, torch.empty, length, dtype=torch.int64, device=args[0].device)
        if packet is aten.nonzero:
            size = (1, args[0].dim())
            return self._told("nonzero", here, torch.empty, size, dtype=torch.int64, device=args[0].device)
        if packet is aten.equal:
            return self._told("equal", here, bool, 1)
        if packet is aten.index and any(_is_mask(each) for each in args[1]):
            return self._told("mask", here, aten.index, args[0], list(_places(args[1])))
        return None

    def _told(self, why: str, here: bool, make: Any, *args: Any, **kwargs: Any) -> Any:
        if here:
            self.wait(why)
        return make(*args, **kwargs)

    def _note_collective(self, func: Any, args: Any, kwargs: Any) -> None:
        if func.namespace not in ("c10d", "_c10d_functional"):
            return
        tensors = [each for each in tree_leaves((args, kwargs)) if self.is_here(each)]
        dtype = str(tensors[0].dtype) if tensors else ""
        kind = (self.phase, str(func.overloadpacket).partition(".")[2], dtype)
        self.collectives[kind] += 1
        self.sent[kind] += sum(each.numel() * each.element_size() for each in tensors)

    def _note_copy(self, packet: Any, args: Any, kwargs: Any, out: Any) -> None:
        if packet not in (aten._to_copy, aten.copy_):
            return
        source = args[1] if packet is aten.copy_ else args[0]
        if not isinstance(source, Tensor) or source.device.type == out.device.type:
            return
        way = f"{source.device.type} to {out.device.type}"
        self.copies[way, caller()[1]] += source.numel() * source.element_size()
        asynchronous = args[2] if packet is aten.copy_ and len(args) > 2 else False
        if not kwargs.get("non_blocking", asynchronous):
            self.wait(f"copy {way}")


def caller() -> tuple[str, str]:
    """The library that asks, and the nearest function of the product below it: ``ppar/cells.py:pool``."""
    owner, place = "", ""
    for frame in _frames(sys._getframe(1)):
        package, file = _origin(frame.f_code.co_filename)
        owner = owner or package
        if package == "ppar_dist":
            place = f"{file}:{frame.f_code.co_name}"
            break
    return owner or "torch", place


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _origin(file: str) -> tuple[str, str]:
    """Which of the libraries a file belongs to, and its path there."""
    for package in _OWNERS:
        _, found, after = file.rpartition(f"/{package}/")
        if found and not after.startswith("doctor/device_probe"):
            return package, after
    return "", ""


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool


def _places(indices: list[Any]) -> Iterator[Any]:
    """Indices in which a mask stands for the place of its only True."""
    for index in indices:
        if _is_mask(index):
            yield from (torch.zeros(1, dtype=torch.int64, device=index.device) for _ in range(index.dim()))
        else:
            yield index


def patch_torch(probe: PretendedDevice) -> None:
    """Let torch do with FakeTensors what it does with others; for a process that ends soon."""
    whole_numpy, whole_list, made = Tensor.numpy, Tensor.tolist, torch.tensor

    def numpy(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, FakeTensor):
            return whole_numpy(self, *args, **kwargs)
        return np.zeros(tuple(self.shape), dtype=str(self.dtype).removeprefix("torch."))

    def tolist(self: Tensor) -> Any:
        if not isinstance(self, FakeTensor):
            return whole_list(self)
        if probe.is_here(self):
            probe.wait("tolist")
        return np.full(tuple(self.shape), probe.value(self), dtype=object).tolist()

    def tensor(data: Any, *args: Any, **kwargs: Any) -> Tensor:
        out = made(data, *args, **kwargs)
        if probe.is_here(out):  # from memory of the host that is not page-locked
            probe.wait("torch.tensor")
        return out

    Tensor.numpy, Tensor.tolist, torch.tensor = numpy, tolist, tensor  # type: ignore[method-assign]
    Tensor.__deepcopy__ = _copy  # type: ignore[method-assign]
    torch.nn.Module._apply = _apply  # type: ignore[method-assign]


def _copy(self: Tensor, memo: dict[int, Any]) -> Tensor:
    """A deep copy: the stock one loses what makes a fake parameter a parameter."""
    if id(self) not in memo:
        with torch.no_grad():
            copied = self.detach().clone()
        is_parameter = getattr(self, "_is_param", False)
        memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if is_parameter else copied
    copy: Tensor = memo[id(self)]
    return copy


def _apply(self: torch.nn.Module, fn: Any, recurse: bool = True) -> torch.nn.Module:
    """Move a module: new parameters, where the stock method exchanges tensors, which FakeTensors refuse."""
    for module in self.children():
        module._apply(fn)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                moved = fn(parameter)
            if moved is not parameter:
                self._parameters[name] = torch.nn.Parameter(moved, parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self
