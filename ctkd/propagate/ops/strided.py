# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Convolutions with a stride on a CPU, whose gradient with respect to their input oneDNN finds slowly."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ctkd.propagate.ops.layout import fast_layout
from ctkd.propagate.ops.thin import keep, skips

Pair = tuple[int, int]


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """``F.conv2d``; with a faster gradient where the kernel is a whole number of strides."""
    if ways := skips(x, weight, stride):
        x, stride, padding = keep(x, ways, stride, padding)
        x = fast_layout(x)
    divides = all(k % s == 0 for k, s in zip(weight.shape[2:], stride, strict=True))
    apart = stride != (1, 1) and dilation == (1, 1) and groups == 1 and divides
    if apart and x.requires_grad and x.device.type == "cpu" and x.dtype != torch.float64:
        result: Tensor = _Strided.apply(x, weight, bias, stride, padding)  # type: ignore[no-untyped-call]
        return result
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def input_gradient(gradient: Tensor, weight: Tensor, size: tuple[int, int], stride: Pair, padding: Pair) -> Tensor:
    """The transposed convolution to images of ``size``, (batch, in, *size), by one without a stride.

    Pixels of each stride's window are taken as channels: then neighbouring windows are neighbouring pixels.
    """
    (out, channels, *kernel), (high, wide) = weight.shape, stride
    windows = weight.reshape(out, channels, kernel[0] // high, high, kernel[1] // wide, wide)
    windows = windows.permute(0, 3, 5, 1, 2, 4).reshape(out, -1, kernel[0] // high, kernel[1] // wide)
    found = F.conv_transpose2d(gradient, windows).permute(0, 2, 3, 1)
    batch, rows, columns, _ = found.shape
    found = found.reshape(batch, rows, columns, high, wide, channels).permute(0, 1, 3, 2, 4, 5)
    images = found.reshape(batch, rows * high, columns * wide, channels).permute(0, 3, 1, 2)
    ends = (have - want for have, want in zip(images.shape[2:], size, strict=True))
    (top, left), (bottom, right) = padding, (end - before for end, before in zip(ends, padding, strict=True))
    return F.pad(images, (-left, -right, -top, -bottom))


class _Strided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes = stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight), (stride, padding) = gradients, ctx.saved_tensors, ctx.sizes
        to_input, *rest = ctx.needs_input_grad[:3]
        found = input_gradient(gradient, weight, x.shape[2:], stride, padding) if to_input else None
        to_weight = to_bias = None
        if any(rest):
            none = (False, (0, 0), 1)  # not transposed, no output padding, one group
            sizes = (weight.shape[:1], stride, padding, (1, 1), *none)
            _, to_weight, to_bias = torch.ops.aten.convolution_backward(gradient, x, weight, *sizes, (False, *rest))
        return found, to_weight, to_bias, None, None
