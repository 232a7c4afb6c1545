# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Sigmoid and tanh: convex up to zero, concave behind it, symmetric about their value at zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ctkd.propagate.ops.base import Activation
from ctkd.propagate.ops.relaxation import Lines


@dataclass(frozen=True, eq=False)
class SShaped(Activation):
    """Lines of CROWN's kind (Zhang et al. 2018, arXiv 1811.00866, Section 3.3): chords and tangents.

    The line above is a tangent at ``d >= 0``, or the chord where no such tangent is above the function. A
    tangent is sound exactly where it is not below the function at ``lower``: for d at least some ``d*``. Among
    those, ``d = max(d*, middle)`` encloses the least area; the paper takes ``d*`` in boxes that contain zero.
    The line below is the line above of the mirrored box, mirrored.

    ``d*`` is searched without gradient, by bisection that keeps the sound end. Its derivative with respect to
    ``lower`` follows from its equation, so bounds have their true gradient.
    """

    origin: ClassVar[float]
    """The value at zero."""

    def slope(self, x: Tensor) -> Tensor:
        """The derivative, with a small relative error also where the function is flat."""
        raise NotImplementedError

    def unstable(self, lower: Tensor, upper: Tensor) -> Tensor:
        return ~(upper <= lower)

    def relax(self, lower: Tensor, upper: Tensor) -> Lines:
        # Both lines in one go: the second row is the mirrored box.
        slope, shift = self._above(torch.stack([lower, -upper]), torch.stack([upper, -lower]))
        return Lines(slope[1], slope[0], 2 * self.origin - shift[1], shift[0])

    def _above(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and shift of a line above the function over [lower, upper]."""
        chord, at_lower = self._chord(lower, upper), self(lower)
        point = torch.maximum(self._least_tangent(lower, upper), (lower + upper) / 2)
        tangent = self.slope(point)
        # A bound that is NaN fails every comparison, takes the chord, and reaches the result.
        touches = (lower >= 0) | ((upper > 0) & (self._excess(upper, lower) >= 0))
        slope = torch.where(touches, tangent, chord)
        return slope, torch.where(touches, self(point) - tangent * point, at_lower - chord * lower)

    def _chord(self, lower: Tensor, upper: Tensor) -> Tensor:
        """The chord's slope; in a box so narrow that rounding would decide it, the steepest slope there.

        A line through the lower end with the steepest slope is above the function, by less than its rounding.
        """
        width = upper - lower
        narrow = width <= math.sqrt(torch.finfo(width.dtype).eps)
        # The denominator is replaced where it is not used, so that no gradient becomes 0 * inf.
        chord = (self(upper) - self(lower)) / torch.where(narrow, torch.ones_like(width), width)
        return torch.where(narrow, self.slope(upper.clamp(max=0)), chord)

    def _excess(self, point: Tensor, lower: Tensor) -> Tensor:
        """How far the tangent at ``point`` is above the function at ``lower``."""
        return self(point) - self(lower) - self.slope(point) * (point - lower)

    def _least_tangent(self, lower: Tensor, upper: Tensor) -> Tensor:
        """``d*``, rounded up; 0 in boxes that do not contain zero, where its value is not needed."""
        with torch.no_grad():
            low = torch.zeros_like(lower)
            # By symmetry the tangent at -lower is sound. One at upper may not be; then no result is used.
            high = torch.minimum(-lower, upper).clamp(min=0)
            for _ in range(round(-math.log2(torch.finfo(lower.dtype).eps))):
                middle = (low + high) / 2
                sound = self._excess(middle, lower) >= 0
                low, high = torch.where(sound, low, middle), torch.where(sound, middle, high)
            # d* moves with lower by -(derivative of the excess by lower) / (by the point).
            by_point = self._bend(high) * (lower - high)
            usable = by_point > torch.finfo(lower.dtype).tiny
            rate = (self.slope(lower) - self.slope(high)) / torch.where(usable, by_point, torch.ones_like(lower))
            rate = torch.where(usable, rate.clamp(-1, 0), torch.zeros_like(lower))
        return high + rate * (lower - lower.detach())

    def _bend(self, x: Tensor) -> Tensor:
        """The second derivative."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Sigmoid(SShaped):
    """``1 / (1 + exp(-x))``."""

    origin = 0.5

    def __call__(self, *inputs: Tensor) -> Tensor:
        return inputs[0].sigmoid()

    def slope(self, x: Tensor) -> Tensor:
        return x.sigmoid() * (-x).sigmoid()

    def _bend(self, x: Tensor) -> Tensor:
        return self.slope(x) * (1 - 2 * x.sigmoid())


@dataclass(frozen=True, eq=False)
class Tanh(SShaped):
    """The hyperbolic tangent."""

    origin = 0.0

    def __call__(self, *inputs: Tensor) -> Tensor:
        return inputs[0].tanh()

    def slope(self, x: Tensor) -> Tensor:
        return 4 * (2 * x).sigmoid() * (-2 * x).sigmoid()

    def _bend(self, x: Tensor) -> Tensor:
        return -2 * x.tanh() * self.slope(x)
