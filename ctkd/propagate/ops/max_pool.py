# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Two-dimensional max pooling: the one nonlinear operator whose outputs share inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ctkd.propagate.ops.base import Nonlinear
from ctkd.propagate.ops.relaxation import Relaxation

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class MaxPool(Nonlinear):
    """The largest value of each window; what padding adds is never the largest.

    Its image of a box is exact output by output, but no box: overlapping windows share inputs, and even
    without overlap nothing here relies on it.
    """

    kernel: Pair
    stride: Pair
    padding: Pair

    def __call__(self, *inputs: Tensor) -> Tensor:
        return F.max_pool2d(inputs[0], self.kernel, self.stride, self.padding)

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return self(lower), self(upper)

    def relax(self, lower: Tensor, upper: Tensor) -> Selection:
        """Below: the input with the largest lower bound. Above: the same where it is the largest for certain,
        else the largest upper bound (the intervals' own)."""
        with torch.no_grad():
            _, chosen, certain = self._largest(lower, upper)
        ceiling = torch.where(certain, torch.zeros_like(certain, dtype=upper.dtype), self(upper))
        return Selection(chosen, certain, ceiling, lower.shape[2:].numel(), tuple(lower.shape[1:]))

    @torch.no_grad()
    def unstable(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Inputs that may exceed the largest lower bound of a window whose largest input is not certain."""
        largest, _, certain = self._largest(lower, upper)
        windows = self._windows(upper, -torch.inf)
        matters = ~(windows <= largest.flatten(2).unsqueeze(2)) & ~certain.flatten(2).unsqueeze(2)
        columns = matters.to(upper.dtype).flatten(1, 2)
        return F.fold(columns, upper.shape[2:], self.kernel, padding=self.padding, stride=self.stride) > 0

    def _largest(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each window the largest lower bound, where it lies, and whether no other upper bound exceeds it.

        Places count the pixels of one channel; all three are (batch, *out_shape).
        """
        value, place = F.max_pool2d(lower, self.kernel, self.stride, self.padding, return_indices=True)
        pixels = torch.arange(lower.shape[2:].numel(), dtype=torch.float64, device=lower.device)
        places = self._windows(pixels.reshape(1, 1, *lower.shape[2:]), -1.0)
        others = self._windows(upper, -torch.inf).masked_fill(places == place.flatten(2).unsqueeze(2), -torch.inf)
        return value, place, value >= others.amax(2).reshape_as(value)

    def _windows(self, x: Tensor, fill: float) -> Tensor:
        """(batch, channels, size of a window, windows)."""
        down, across = self.padding
        padded = F.pad(x, (across, across, down, down), value=fill)
        columns = F.unfold(padded, self.kernel, stride=self.stride)
        return columns.reshape(*x.shape[:2], -1, columns.shape[2])


@dataclass(frozen=True, eq=False)
class Selection(Relaxation):
    """Each output is at least its chosen input, and equal to it where that is certain, else at most ``ceiling``.

    Attributes:
        chosen: (batch, *out_shape), the input's place among the pixels of its channel.
        certain: (batch, *out_shape), boolean.
        ceiling: (batch, *out_shape), 0 where it is certain.
        pixels, in_shape: of one channel, and of the whole input.
    """

    chosen: Tensor
    certain: Tensor
    ceiling: Tensor
    pixels: int
    in_shape: tuple[int, ...]

    def backward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        positive, negative = rows.clamp(min=0), rows.clamp(max=0)
        passed = positive + negative * self.certain.unsqueeze(1)
        chosen = self.chosen.unsqueeze(1).expand_as(rows).flatten(3)
        result = rows.new_zeros(*rows.shape[:3], self.pixels).scatter_add(3, chosen, passed.flatten(3))
        constant = (negative * self.ceiling.unsqueeze(1)).flatten(2).sum(2)
        return result.reshape(*rows.shape[:2], *self.in_shape), constant

    def __getitem__(self, samples: Tensor | slice) -> Selection:
        chosen, certain, ceiling = self.chosen[samples], self.certain[samples], self.ceiling[samples]
        return Selection(chosen, certain, ceiling, self.pixels, self.in_shape)
