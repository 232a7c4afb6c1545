# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Two-dimensional convolution, and average pooling as the convolution it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from ctkd.propagate.ops.base import Affine
from ctkd.propagate.ops.layout import fast_layout
from ctkd.propagate.ops.strided import convolve
from ctkd.propagate.ops.thin import put_back, skips, without

Pair = tuple[int, int]


def _pull_back(
    rows: Tensor,
    weight: Tensor,
    in_shape: tuple[int, ...],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """The transposed convolution to ``in_shape``, by whichever of three equal ways is fast."""
    # To one channel oneDNN is slow; in float64 it does nothing, and PyTorch's own convolution is faster backwards.
    rows, shape = fast_layout(rows.to(weight.dtype)), (rows.shape[0], *in_shape)
    if groups == 1 and in_shape[0] == 1 and rows.device.type == "cpu" and dilation == (1, 1):
        columns = weight.flatten(1).t() @ rows.flatten(2)
        return F.fold(columns, in_shape[1:], weight.shape[2:], 1, padding, stride)
    if rows.dtype == torch.float64:
        pulled: Tensor = conv2d_input(shape, weight, rows, stride, padding, dilation, groups)  # type: ignore[no-untyped-call]
        return pulled
    ways = skips(rows, weight, stride)
    whole, (steps, around) = in_shape[1:], without(ways, stride, padding)
    size = tuple(rows.shape[2 + i] if i in ways else whole[i] for i in range(2))
    extra = tuple(
        size[i] - ((rows.shape[2 + i] - 1) * steps[i] - 2 * around[i] + dilation[i] * (weight.shape[2 + i] - 1) + 1)
        for i in range(2)
    )
    kept = F.conv_transpose2d(rows, weight, None, steps, around, extra, groups, dilation)
    return put_back(kept, ways, (whole[0], whole[1]), stride, padding) if ways else kept


@dataclass(frozen=True, eq=False)
class Conv(Affine):
    """``weight`` (out, in / groups, kh, kw), ``bias`` (out,); zero padding, the same on both sides."""

    weight: Tensor
    bias: Tensor
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = fast_layout(x.to(weight.dtype))
        return convolve(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self._apply(inputs[0], self.weight, self.bias)

    def radius(self, radius: Tensor) -> Tensor:
        return self._apply(radius, self.weight.abs(), None)

    def backward(self, rows: Tensor, in_shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        pulled = _pull_back(rows, self.weight, in_shape, self.stride, self.padding, self.dilation, self.groups)
        return pulled, rows.sum((2, 3)) @ self.bias.to(rows.dtype)

    def then_scale(self, scale: Tensor, shift: Tensor) -> Conv:
        scale, shift = scale.flatten(), shift.flatten()
        weight = self.weight * scale[:, None, None, None]
        return Conv(weight, self.bias * scale + shift, self.stride, self.padding, self.dilation, self.groups)


@dataclass(frozen=True, eq=False)
class AvgPool(Affine):
    """Mean over windows; padded zeros count (PyTorch's default)."""

    kernel: Pair
    stride: Pair
    padding: Pair

    def __call__(self, *inputs: Tensor) -> Tensor:
        return F.avg_pool2d(inputs[0], self.kernel, self.stride, self.padding)

    def radius(self, radius: Tensor) -> Tensor:
        return self(radius)  # every weight is positive

    def backward(self, rows: Tensor, in_shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        count, size = in_shape[0], self.kernel[0] * self.kernel[1]
        weight = rows.new_full((count, 1, *self.kernel), 1 / size)
        return _pull_back(rows, weight, in_shape, self.stride, self.padding, (1, 1), count), None
