# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""MTL-IBP (De Palma et al. 2024, arXiv 2305.13991, Section 4): mix the losses of the point and the box."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.options import Options, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Kind, Needs, Schedule, Step


class MTLIBPOptions(Options):
    """How the two losses are mixed."""

    alpha: Unit = 0.5
    """Weight of the box's loss (α of the source); 1 is IBP, 0 is adversarial training."""


class MTLIBP:
    """``(1 - alpha) loss(point) + alpha loss(box)`` per sample. An estimate, not a bound, for alpha < 1.

    By convexity it is never below CC-IBP's loss at the same alpha.
    """

    Options = MTLIBPOptions
    evaluates: frozenset[Kind] = frozenset({"point", "box"})
    sound = False

    def __init__(self, options: MTLIBPOptions) -> None:
        self.options = options

    def needs(self, schedule: Schedule) -> Needs:
        from ctkd.api import Needs, full_box

        return Needs(points=frozenset({"adversarial"}), boxes={"full": full_box})

    def combine(self, step: Step) -> Tensor:
        alpha = self.options.alpha
        if alpha in (0, 1):  # so that no infinite loss of weight 0 becomes NaN
            return step.loss(step["full"] if alpha else step["adversarial"])
        return (1 - alpha) * step.loss(step["adversarial"]) + alpha * step.loss(step["full"])
