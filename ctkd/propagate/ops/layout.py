# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Memory layout of images: on a CPU, convolutions are two to five times faster on channels-last tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def fast_layout(x: Tensor) -> Tensor:
    """The same images (batch, channels, height, width), laid out as convolutions like them.

    Channels last for float32 and below on a CPU; other precisions and devices keep what they have.
    """
    if x.device.type != "cpu" or x.dtype == torch.float64:
        return x
    if x.shape[1] == 1:  # both layouts are one, and only the strides say which is meant
        count, _, height, width = x.shape
        return x.reshape(count, height, width, 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``x.reshape(-1, *shape)``, whose gradient comes back in the layout of ``x``."""
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return _FromChannelsLast.apply(x, shape)  # type: ignore[no-any-return, no-untyped-call]
    return x.reshape(-1, *shape)


class _FromChannelsLast(torch.autograd.Function):
    """Without it the layers before a flattening would mix two layouts in their backward pass, which is slow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.shape = x.shape
        return x.reshape(-1, *shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].reshape(ctx.shape).contiguous(memory_format=torch.channels_last), None
