"""The network whose features fill the prototype bank, where it is not the student itself."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ppar_dist.config.method_section import BankConfig
from ppar_dist.models.segmentor import Segmentor


class Teacher(nn.Module):
    """A frozen copy of the student at its start (``frozen``) or its moving average (``ema``).

    It runs every ``teacher_every`` steps: at 4, a forward pass of the tower costs a quarter of one.
    """

    def __init__(self, student: Segmentor, config: BankConfig) -> None:
        """Copy ``student`` as it is now."""
        super().__init__()
        self.config = config
        self.copy = copy.deepcopy(student).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode: a teacher has no noise."""
        return super().train(False)

    @property
    def is_constant(self) -> bool:
        """Whether it stays what it was at the start."""
        return self.config.teacher == "frozen"

    def is_due(self, step: int) -> bool:
        """Whether the bank is fed at ``step``."""
        return step % self.config.teacher_every == 0

    @torch.no_grad()
    def features(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        """Dense features of images."""
        return self.copy.dense(images)

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """After a step: θ̄ ← m θ̄ + (1−m) θ over parameters and floating buffers; nothing when frozen."""
        if self.is_constant:
            return
        source = student.state_dict()
        for name, value in self.copy.state_dict().items():
            if value.is_floating_point():
                value.lerp_(source[name].to(value), 1.0 - self.config.teacher_momentum)


def build_teacher(student: Segmentor, config: BankConfig) -> Teacher | None:
    """The teacher that ``config`` asks for; None when the student feeds the bank itself."""
    return None if config.teacher == "student" else Teacher(student, config)
