# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Elementwise affine maps, sums of branches, and changes of shape."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ctkd.propagate.ops.base import Affine, Op
from ctkd.propagate.ops.layout import reshape


@dataclass(frozen=True, eq=False)
class Scale(Affine):
    """``scale * x + shift``, both broadcast against (batch, *shape): normalisation, constants, batch norm."""

    scale: Tensor
    shift: Tensor

    def __call__(self, *inputs: Tensor) -> Tensor:
        return (inputs[0] * self.scale + self.shift).to(inputs[0].dtype)

    def radius(self, radius: Tensor) -> Tensor:
        return (radius * self.scale.abs()).to(radius.dtype)

    def backward(self, rows: Tensor, in_shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        return rows * self.scale, (rows * self.shift).flatten(1).sum(1)

    def then_scale(self, scale: Tensor, shift: Tensor) -> Scale:
        return Scale(self.scale * scale, self.shift * scale + shift)


@dataclass(frozen=True, eq=False)
class Reshape(Affine):
    """A new shape for each sample; the batch dimension stays first."""

    shape: tuple[int, ...]

    def __call__(self, *inputs: Tensor) -> Tensor:
        return reshape(inputs[0], self.shape)

    def radius(self, radius: Tensor) -> Tensor:
        return self(radius)

    def backward(self, rows: Tensor, in_shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        return rows.reshape(-1, *in_shape), None


@dataclass(frozen=True, eq=False)
class Add(Op):
    """The sum of two branches of equal shape: centres add, radii add, rows go to both."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]
