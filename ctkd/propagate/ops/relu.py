# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The rectifier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctkd.propagate.ops.base import Activation, Relaxation


@dataclass(frozen=True, eq=False)
class Relu(Activation):
    """``max(x, 0)``, with the triangle's chord above and the adaptive line through zero below.

    Zhang et al. 2018 (CROWN, arXiv 1811.00866): the slope below is 1 where ``upper > -lower`` and 0 elsewhere,
    which minimises the relaxed area.
    """

    def __call__(self, *inputs: Tensor) -> Tensor:
        return inputs[0].relu()

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return lower.relu(), upper.relu()

    def relax(self, lower: Tensor, upper: Tensor) -> Relaxation:
        active = lower >= 0
        unstable = self.unstable(lower, upper)  # also where a bound is NaN, which then reaches the result
        # The denominator is replaced where it is not used, so that no gradient becomes 0 * inf.
        width = torch.where(unstable, upper - lower, torch.ones_like(upper))
        chord = torch.where(unstable, upper / width, active.to(upper.dtype))
        shift = torch.where(unstable, -chord * lower, torch.zeros_like(upper))
        below = torch.where(unstable, upper > -lower, active).to(upper.dtype)
        return Relaxation(below, chord, None, shift)

    def unstable(self, lower: Tensor, upper: Tensor) -> Tensor:
        return ~((lower >= 0) | (upper <= 0))
