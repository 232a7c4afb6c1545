# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The rectifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctkd.propagate.ops.base import Activation, Lines


@dataclass(frozen=True, eq=False)
class Relu(Activation):
    """``max(x, 0)``, with the triangle's chord above and the adaptive line through zero below.

    Zhang et al. 2018 (CROWN, arXiv 1811.00866): the slope below is 1 where ``upper > -lower`` and 0 elsewhere,
    which minimises the relaxed area.
    """

    def __call__(self, *inputs: Tensor) -> Tensor:
        return inputs[0].relu()

    def joint(self, value: Tensor, radius: Tensor, points: int) -> tuple[Tensor, Tensor]:
        value, radius = _Joint.apply(value, radius, points)  # type: ignore[no-untyped-call]
        return value, radius

    def relax(self, lower: Tensor, upper: Tensor) -> Lines:
        active = lower >= 0
        unstable = self.unstable(lower, upper)  # also where a bound is NaN, which then reaches the result
        # The denominator is replaced where it is not used, so that no gradient becomes 0 * inf.
        width = torch.where(unstable, upper - lower, torch.ones_like(upper))
        chord = torch.where(unstable, upper / width, active.to(upper.dtype))
        shift = torch.where(unstable, -chord * lower, torch.zeros_like(upper))
        below = torch.where(unstable, upper > -lower, active).to(upper.dtype)
        return Lines(below, chord, None, shift)

    def unstable(self, lower: Tensor, upper: Tensor) -> Tensor:
        return ~((lower >= 0) | (upper <= 0))


class _Joint(torch.autograd.Function):
    """``Activation.joint`` with the same arithmetic and few passes over memory, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, radius: Tensor, points: int) -> tuple[Tensor, Tensor]:
        result = torch.empty_like(value)
        torch.clamp(value[:points], min=0, out=result[:points])
        centre = value[points:]
        lower, upper = centre - radius, centre + radius
        lower.clamp_(min=0)
        upper.clamp_(min=0)
        torch.add(lower, upper, out=result[points:]).mul_(0.5)
        ctx.points = points
        ctx.save_for_backward(result[:points], lower, upper)
        return result, (upper - lower).mul_(0.5)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        value, radius = gradients
        active, lower, upper = ctx.saved_tensors
        result, where = torch.empty_like(value), torch.ops.aten.threshold_backward
        torch.ops.aten.threshold_backward.grad_input(value[: ctx.points], active, 0, grad_input=result[: ctx.points])
        centre = value[ctx.points :]
        below = where(centre - radius, lower, 0).mul_(0.5)
        above = where(centre + radius, upper, 0).mul_(0.5)
        torch.add(below, above, out=result[ctx.points :])
        return result, above.sub_(below), None
