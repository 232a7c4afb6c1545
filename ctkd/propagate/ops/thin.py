# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Kernels one pixel wide that skip pixels: the pixels are skipped outside the convolution.

On CPUs without AVX-512, oneDNN's weight gradient of a 1x1 convolution with a stride writes beyond its memory where
fewer than 8 channels come last (oneDNN's issue 6035). The gradient is wrong, or the process dies later.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


def skips(x: Tensor, weight: Tensor, stride: Pair) -> list[int]:
    """The directions, of 0 and 1, in which pixels are skipped."""
    if x.device.type != "cpu" or x.dtype == torch.float64:
        return []
    return [i for i in range(2) if weight.shape[2 + i] == 1 and stride[i] > 1]


def without(ways: list[int], stride: Pair, padding: Pair) -> tuple[Pair, Pair]:
    """The stride and padding that are left where those directions are seen to."""
    steps, around = (
        [neutral if i in ways else pair[i] for i in range(2)] for neutral, pair in ((1, stride), (0, padding))
    )
    return (steps[0], steps[1]), (around[0], around[1])


def keep(x: Tensor, ways: list[int], stride: Pair, padding: Pair) -> tuple[Tensor, Pair, Pair]:
    """The pixels that such a kernel looks at, and the stride and padding that are left."""
    steps, around = [1, 1], [0, 0]
    for i in ways:
        steps[i], around[i] = stride[i], padding[i]
    x = F.pad(x, (around[1], around[1], around[0], around[0]))[:, :, :: steps[0], :: steps[1]]
    return x, *without(ways, stride, padding)


def put_back(kept: Tensor, ways: list[int], size: Pair, stride: Pair, padding: Pair) -> Tensor:
    """The transpose of ``keep``: zeros, (batch, channels, *size), with ``kept`` where its pixels came from."""
    steps = [stride[i] if i in ways else 1 for i in range(2)]
    whole = [size[i] + 2 * padding[i] if i in ways else size[i] for i in range(2)]
    images = kept.new_zeros(*kept.shape[:2], *whole).contiguous(memory_format=torch.channels_last)
    images[:, :, :: steps[0], :: steps[1]] = kept
    top, left = (padding[i] if i in ways else 0 for i in range(2))
    return images[:, :, top : top + size[0], left : left + size[1]]
