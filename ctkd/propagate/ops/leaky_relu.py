# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The leaky rectifier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctkd.propagate.ops.base import Activation
from ctkd.propagate.ops.relaxation import Lines
from ctkd.propagate.ops.relu import Relu


@dataclass(frozen=True, eq=False)
class LeakyRelu(Activation):
    """``max(x, s x)`` for a slope s in [0, 1): ``s x + (1 - s) relu(x)``, so ReLU's lines serve here too.

    Below that gives slope 1 where ``upper > -lower`` and s elsewhere, which minimises the relaxed area.
    ``negative_slope`` is a scalar tensor, so that it is rounded, stored and exported like a weight.
    """

    negative_slope: Tensor

    def __call__(self, *inputs: Tensor) -> Tensor:
        return torch.maximum(inputs[0], inputs[0] * self.negative_slope)

    def relax(self, lower: Tensor, upper: Tensor) -> Lines:
        relu = Relu().relax(lower, upper)
        assert relu.upper_shift is not None
        slope, rest = self.negative_slope, 1 - self.negative_slope
        return Lines(slope + rest * relu.lower_slope, slope + rest * relu.upper_slope, None, rest * relu.upper_shift)

    def unstable(self, lower: Tensor, upper: Tensor) -> Tensor:
        return Relu().unstable(lower, upper)
