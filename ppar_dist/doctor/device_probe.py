"""What runs on a device and what it holds, counted call by call; with FakeTensors nothing is computed for it.

Counted are the calls that reach a device as kernels, the floating-point operations of matrix products,
convolutions and attention, and the bytes of all tensors alive, each rounded up as CUDA's allocator does.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_BLOCK = 512  # bytes; memory of a device is given out in multiples of it


class DeviceProbe(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is entered; ``reset`` begins again but for the bytes held.

    Attributes:
        operations: calls by name, without those that only look at a tensor in another way.
        flops: by the dtype of the operands; a multiplication and an addition count as two.
        held: bytes of the tensors alive.
        peak: the most bytes held since ``reset``.
    """

    def __init__(self, device_type: str) -> None:
        """``device_type``: ``cpu`` or ``cuda``; tensors elsewhere are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.device_type = device_type
        self.held = 0
        self._storages: dict[int, int] = {}
        self.reset()

    def reset(self) -> None:
        """Forget all counts; what is held stays held."""
        self.operations: Counter[str] = Counter()
        self.flops: Counter[torch.dtype] = Counter()
        self.peak = self.held

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` and count it, or the parts that it is made of."""
        kwargs = kwargs or {}
        if is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        self.count(func, args, kwargs, out)
        return out

    def count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Count a call that has given ``out``."""
        operands = [each for each in tree_leaves((args, kwargs)) if self.is_here(each)]
        results = [each for each in tree_leaves(out) if self.is_here(each)]
        if not operands and not results:
            return
        if not getattr(func, "is_view", False):
            self.operations[str(func.overloadpacket)] += 1
        flops = _flops(func.overloadpacket, args, kwargs, out)
        if flops:
            self.flops[next(each.dtype for each in operands if each.is_floating_point())] += flops
        for each in results:
            self._hold(each)

    def is_here(self, value: object) -> bool:
        """Whether ``value`` is a tensor on the device."""
        return isinstance(value, Tensor) and value.device.type == self.device_type

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = -(-storage.nbytes() // _BLOCK) * _BLOCK
            self.held += self._storages[key]
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.held -= self._storages.pop(key, 0)


@functools.cache
def is_composite(func: Any) -> bool:
    """Whether a call is made of others; without gradients it comes here whole."""
    if func.namespace == "prim":  # questions of the interpreter, such as a tensor's device
        return False
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))


def _flops(packet: Any, args: Any, kwargs: Any, out: Any) -> int:
    if packet in flop_registry:
        counted: int = flop_registry[packet](*args, **kwargs, out_val=out)
        return counted
    # Attention on a CPU, which torch's registry lacks.
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        query, key, value = args[:3]
        forward: int = sdpa_flop_count(query.shape, key.shape, value.shape)  # type: ignore[no-untyped-call]
        return forward
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        gradient, query, key, value = args[:4]
        shapes = gradient.shape, query.shape, key.shape, value.shape
        backward: int = sdpa_backward_flop_count(*shapes)  # type: ignore[no-untyped-call]
        return backward
    return 0
