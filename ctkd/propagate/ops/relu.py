# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The rectifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctkd.propagate.ops.base import Activation
from ctkd.propagate.ops.relaxation import Lines


@dataclass(frozen=True, eq=False)
class Relu(Activation):
    """``max(x, 0)``, with the triangle's chord above and the adaptive line through zero below.

    Zhang et al. 2018 (CROWN, arXiv 1811.00866): the slope below is 1 where ``upper > -lower`` and 0 elsewhere,
    which minimises the relaxed area.
    """

    def __call__(self, *inputs: Tensor) -> Tensor:
        return inputs[0].relu()

    def joint(self, value: Tensor, radius: Tensor, points: int) -> tuple[Tensor, Tensor]:
        value, radius = _Joint.apply(value, radius, points, PLAIN)  # type: ignore[no-untyped-call]
        return value, radius

    def relax(self, lower: Tensor, upper: Tensor) -> Lines:
        chord, shift = _Chord.apply(lower, upper)  # type: ignore[no-untyped-call]
        return Lines((upper > -lower).to(chord.dtype), chord, None, shift)

    def unstable(self, lower: Tensor, upper: Tensor) -> Tensor:
        return ~((lower >= 0) | (upper <= 0))


class Kernels(NamedTuple):
    """The arithmetic of the boxes in ``Relu.joint``. Each writes into its last argument and returns a new tensor.

    With u and l the images of a box's ends, the image is (u + l) / 2 with radius (u - l) / 2. u > 0 where the first is
    positive, l > 0 where it exceeds the second.
    """

    image: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Of (centre, radius); the image's centre is written, its radius returned."""
    gradient: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    """Of (gradient of the image's centre, of its radius, image's centre, its radius); that of the centre is written,
    that of the radius returned."""


def _image(centre: Tensor, radius: Tensor, middle: Tensor) -> Tensor:
    lower, upper = centre - radius, centre + radius
    torch.lerp(lower.clamp_(min=0), upper.clamp_(min=0), 0.5, out=middle)
    return upper.sub_(middle)


def _gradient(by_middle: Tensor, by_half: Tensor, middle: Tensor, half: Tensor, by_centre: Tensor) -> Tensor:
    where = torch.ops.aten.threshold_backward.grad_input
    above = by_middle + by_half
    where(above, middle, 0, grad_input=above)
    below = by_middle - by_half
    where(below, middle - half, 0, grad_input=below)
    torch.lerp(below, above, 0.5, out=by_centre)
    return above.sub_(by_centre)


PLAIN = Kernels(_image, _gradient)


class _Joint(torch.autograd.Function):
    """``Activation.joint`` with few passes over memory and nothing kept but its results, which the next layer keeps."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, radius: Tensor, points: int, kernels: Kernels) -> tuple[Tensor, Tensor]:
        result = torch.empty_like(value)
        torch.clamp(value[:points], min=0, out=result[:points])
        half = kernels.image(value[points:], radius, result[points:])
        ctx.points, ctx.kernels = points, kernels
        ctx.save_for_backward(result, half)
        return result, half

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (value, radius), points = gradients, ctx.points
        kept, half = ctx.saved_tensors
        result = torch.empty_like(value)
        torch.ops.aten.threshold_backward.grad_input(value[:points], kept[:points], 0, grad_input=result[:points])
        by_radius = ctx.kernels.gradient(value[points:], radius, kept[points:], half, result[points:])
        return result, by_radius, None, None


class _Chord(torch.autograd.Function):
    """Slope and shift of the line through the rectifier's values at both ends.

    With l = min(lower, 0) and u = max(upper, 0) the slope is u / (u - l), the shift -u l / (u - l), in every case: 1
    and 0 where lower >= 0, 0 and 0 where upper <= 0 (also in the box that is zero alone). A NaN bound reaches both.
    """

    @staticmethod
    def forward(ctx: Any, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        low, high = lower.clamp(max=0), upper.clamp(min=0)
        width = high - low
        width.masked_fill_(width == 0, 1)  # the box is the point zero
        chord = high.div_(width)
        ctx.save_for_backward(chord, width)
        return chord, low.mul_(chord).neg_()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Of slope c: c / width by l and (1 - c) / width by u. Of the shift: -c^2 by l and (1 - c)^2 by u."""
        by_chord, by_shift = gradients
        chord, width = ctx.saved_tensors
        rest = 1 - chord
        stable = (chord * rest) == 0
        by_chord = by_chord.div(width).masked_fill_(stable, 0)
        by_shift = by_shift.masked_fill(stable, 0)
        by_lower = torch.addcmul(by_chord, by_shift, chord, value=-1).mul_(chord)
        by_upper = by_chord.addcmul_(by_shift, rest).mul_(rest)
        return by_lower, by_upper
