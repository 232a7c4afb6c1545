# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The one function that turns a radius into a box: attacks, bounds, certificates and exports speak about its result."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """The inputs between ``lower`` and ``upper``, elementwise, each (batch, *input_shape)."""

    lower: Tensor
    upper: Tensor

    def to(self, target: torch.dtype | torch.device | str) -> Box:
        """The same bounds in another type, or on another device; of types, only float64 rounds nothing of float32."""
        return Box(self.lower.to(target), self.upper.to(target))

    def __getitem__(self, index: Tensor | slice) -> Box:
        return Box(self.lower[index], self.upper[index])

    def clamp(self, x: Tensor) -> Tensor:
        """The inputs of the box nearest to ``x``."""
        return torch.minimum(torch.maximum(x, self.lower), self.upper)


def perturbation_box(x: Tensor, eps: float) -> Box:
    """All images within L-infinity distance ``eps`` of ``x`` that are images at all (pixels in [0, 1]).

    Args:
        x: (batch, *input_shape), float32 or float64, in [0, 1].
        eps: radius in pixel units; the double nearest to the written number is what is meant.

    Returns:
        Bounds in the dtype of ``x``. Float32 bounds are rounded outward: they contain the exact box of
        ``x`` and ``eps`` in real arithmetic, and no float32 number further out than needed.
    """
    wide = x.double()
    if x.dtype == torch.float64:
        return Box((wide - eps).clamp(0, 1), (wide + eps).clamp(0, 1))
    return Box(_shift(wide, -eps, -1), _shift(wide, eps, 1))


def _shift(x: Tensor, by: float, direction: int) -> Tensor:
    total = x + by
    # Knuth's two-sum: x + by == total + error exactly.
    virtual = total - x
    error = (x - (total - virtual)) + (by - virtual)
    rounded = total.float()
    gap = (rounded.double() - total) - error  # sign of (rounded - exact); only its sign is used
    inside = gap * direction < 0
    away = torch.full_like(rounded, direction * torch.inf)
    return torch.where(inside, torch.nextafter(rounded, away), rounded).clamp(0, 1)


def centre_radius(box: Box) -> tuple[Tensor, Tensor]:
    """Centre and half-width of a box in its own dtype; the half-width is rounded up, so that nothing is lost."""
    centre = (box.lower + box.upper) / 2
    radius = torch.maximum(box.upper - centre, centre - box.lower)
    grown = torch.nextafter(radius, torch.full_like(radius, torch.inf))
    return centre, torch.where(box.upper > box.lower, grown, radius)
