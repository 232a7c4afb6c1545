# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What SABR and STAPS share: the small box, and the shrinking of ReLU inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ctkd.options import Number

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import BoxContext
    from ctkd.boxes import Box
    from ctkd.propagate.ops import Nonlinear

Ratio = Annotated[Number, Field(gt=0, le=1)]


def small_box(context: BoxContext, lam: float) -> Box:
    """The box with half-widths ``tau = lam (ub - lb) / 2`` as near to the adversarial point as it fits into [lb, ub].

    Bit for bit the full box where ``lam`` is 1.
    """
    from ctkd.boxes import Box

    full = context.box
    if lam == 1:
        return full
    tau = lam * (full.upper - full.lower) / 2
    centre = Box(full.lower + tau, full.upper - tau).clamp(context.points["adversarial"])
    return Box(full.clamp(centre - tau), full.clamp(centre + tau))


def searched(lam: float) -> frozenset[str]:
    """The point that the box is built around; none is searched for a box that fills the full one."""
    return frozenset({"adversarial"} if lam < 1 else ())


def shrinking(factor: float) -> Callable[[Nonlinear, Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """``Needs.tighten`` for ReLU shrinking: the upper bound of a ReLU's unstable input becomes ``factor`` times itself.

    Not sound: bounds behind it hold for no set. None where the factor is 1. The regularisers of Shi et al. see the
    shrunk bounds (CTBench: those before).
    """
    if factor == 1:
        return None

    def shrink(op: Nonlinear, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        from ctkd.propagate.ops import Relu

        if not isinstance(op, Relu):
            return lower, upper
        return lower, torch.where((lower < 0) & (upper > 0), factor * upper, upper)

    return shrink
