# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Fully connected layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ctkd.propagate.ops.base import Affine


@dataclass(frozen=True, eq=False)
class Linear(Affine):
    """``weight`` (out, in), ``bias`` (out,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, *inputs: Tensor) -> Tensor:
        return F.linear(inputs[0], self.weight, self.bias)

    def radius(self, radius: Tensor) -> Tensor:
        return F.linear(radius, self.weight.abs())

    def backward(self, rows: Tensor, in_shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        return rows @ self.weight, rows @ self.bias

    def then_scale(self, scale: Tensor, shift: Tensor) -> Linear:
        scale, shift = scale.flatten(), shift.flatten()
        return Linear(self.weight * scale[:, None], self.bias * scale + shift)
