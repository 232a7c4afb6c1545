# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""CC-IBP (De Palma et al. 2024, arXiv 2305.13991, Section 4): mix the enclosures, then take one loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.options import Options, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Kind, Needs, Schedule, Step


class CCIBPOptions(Options):
    """How point and box are mixed."""

    alpha: Unit = 0.5
    """Weight of the box (α of the source); 1 is IBP, 0 is adversarial training."""


class CCIBP:
    """The loss of ``(1 - alpha) point + alpha box``: centre, radius and margins alike. An estimate, not a bound."""

    Options = CCIBPOptions
    evaluates: frozenset[Kind] = frozenset({"mixed"})
    sound = False

    def __init__(self, options: CCIBPOptions) -> None:
        self.options = options

    def needs(self, schedule: Schedule) -> Needs:
        from ctkd.api import Needs, full_box

        return Needs(points=frozenset({"adversarial"}), boxes={"full": full_box})

    def combine(self, step: Step) -> Tensor:
        return step.loss(step["adversarial"].mix(step["full"], self.options.alpha))
