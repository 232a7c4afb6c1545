# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The rectifier's training bounds as two kernels that torch.compile makes, each one pass over memory."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ctkd.propagate.ops.relu import PLAIN, Kernels, Relu, _Joint


@dataclass(frozen=True, eq=False)
class CompiledRelu(Relu):
    """Of equal result, up to rounding. It stands for ``Relu`` in training only, and is never stored."""

    def joint(self, value: Tensor, radius: Tensor, points: int) -> tuple[Tensor, Tensor]:
        value, radius = _Joint.apply(value, radius, points, kernels())  # type: ignore[no-untyped-call]
        return value, radius


@functools.cache
def kernels() -> Kernels:
    """Compiled at the first call for each type and device; raises whatever a missing compiler makes torch raise."""
    image, gradient = torch.compile(_image, dynamic=True), torch.compile(_gradient, dynamic=True)

    def flat_image(centre: Tensor, radius: Tensor, middle: Tensor) -> Tensor:
        if not _alike(centre, radius, middle):
            return PLAIN.image(centre, radius, middle)
        half = torch.empty_like(centre)
        image(*map(_flat, (centre, radius, middle, half)))
        return half

    def flat_gradient(by_middle: Tensor, by_half: Tensor, middle: Tensor, half: Tensor, by_centre: Tensor) -> Tensor:
        if not _alike(by_middle, by_half, middle, half, by_centre):
            return PLAIN.gradient(by_middle, by_half, middle, half, by_centre)
        by_radius = torch.empty_like(half)
        gradient(*map(_flat, (by_middle, by_half, middle, half, by_centre, by_radius)))
        return by_radius

    return Kernels(flat_image, flat_gradient)


def compile_now(dtype: torch.dtype, device: torch.device) -> None:
    """Compile before training begins, so that no step waits for it."""
    value, radius = (torch.rand(4, 8, dtype=dtype, device=device, requires_grad=True) for _ in range(2))
    for points in (0, 2):
        centre, half = CompiledRelu().joint(value, radius[points:], points)
        (centre.sum() + half.sum()).backward()  # type: ignore[no-untyped-call]


def _image(centre: Tensor, radius: Tensor, middle: Tensor, half: Tensor) -> None:
    lower, upper = (centre - radius).clamp(min=0), (centre + radius).clamp(min=0)
    mean = (lower + upper) / 2
    middle.copy_(mean)
    half.copy_(upper - mean)


def _gradient(
    by_middle: Tensor, by_half: Tensor, middle: Tensor, half: Tensor, by_centre: Tensor, by_radius: Tensor
) -> None:
    above = torch.where(middle > 0, by_middle + by_half, 0.0)
    below = torch.where(middle > half, by_middle - by_half, 0.0)
    mean = (above + below) / 2
    by_centre.copy_(mean)
    by_radius.copy_(above - mean)


def _flat(x: Tensor) -> Tensor:
    """All values in the order of memory: one kernel serves all shapes."""
    x = x.detach()
    return (x if x.is_contiguous() else x.permute(0, 2, 3, 1)).view(-1)


def _alike(*tensors: Tensor) -> bool:
    """Whether all lie in memory in one order without gaps."""
    shape, first = tensors[0].shape, tensors[0]
    if first.is_contiguous():
        return all(x.shape == shape and x.is_contiguous() for x in tensors)
    layout = torch.channels_last
    return first.dim() == 4 and all(x.shape == shape and x.is_contiguous(memory_format=layout) for x in tensors)
