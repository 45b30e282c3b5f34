"""A moving average of a model's weights, θ̄ ← m·θ̄ + (1−m)·θ after every step that was taken.

It begins as a copy of the weights and counts nothing, so the same steps give the same average wherever they
are taken. Sources: Polyak and Juditsky 1992, Izmailov et al. 2018; as a moving average, Tarvainen and Valpola
2017.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

AVERAGE = "average."  # before its names in a checkpoint


def averaged_values(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a checkpoint's tensors that are averaged weights, by the model's names."""
    return {name.removeprefix(AVERAGE): value for name, value in tensors.items() if name.startswith(AVERAGE)}


class WeightAverage:
    """The average, in fp32 beside the model: trained parameters and floating buffers (statistics).

    What is frozen is its own average.
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        """Begin with the weights that ``model`` has now; ``momentum`` is m."""
        self.momentum = momentum
        self._values = {name: value.float().clone() for name, value in _averaged(model).items()}

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        live = [value.float() for value in _averaged(model).values()]
        torch._foreach_lerp_(list(self._values.values()), live, 1.0 - self.momentum)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has the averaged weights; afterwards its own again, bit for bit."""
        live = _averaged(model)
        own = {name: value.clone() for name, value in live.items()}
        try:
            _copy(self._values, live)
            yield
        finally:
            _copy(own, live)

    def take(self, model: nn.Module) -> None:
        """Become what the model has now: within ``in_place``, after its classifiers were fitted again."""
        _copy(_averaged(model), self._values)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged values by the model's names."""
        return dict(self._values)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore ``state_dict``.

        Raises:
            KeyError, RuntimeError: it is of another model.
        """
        _copy({name: state[name] for name in self._values}, self._values)


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    state = model.state_dict()
    return {name: each for name, each in state.items() if name not in frozen and each.is_floating_point()}


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
