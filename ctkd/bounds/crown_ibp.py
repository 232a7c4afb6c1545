# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""CROWN-IBP (Zhang et al. 2020, arXiv 1906.06316): one backward linear relaxation on interval bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.options import Options, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Kind, Needs, Schedule, Step


class CrownIBPOptions(Options):
    """beta weighs the relaxation's margins against interval margins (β in Section 4 of the source)."""

    beta_start: Unit = 1.0
    """β where the ramp begins; 1 is the pure relaxation."""
    beta_end: Unit = 1.0
    """β from the end of the ramp on. The source ends at 0 (pure intervals); see docs/results for the default."""


class CrownIBP:
    """Margins ``beta * relaxation + (1 - beta) * intervals``, a lower bound because both are. Sound."""

    Options = CrownIBPOptions
    evaluates: frozenset[Kind] = frozenset({"box"})

    def __init__(self, options: CrownIBPOptions) -> None:
        self.options = options

    def needs(self, schedule: Schedule) -> Needs:
        from ctkd.api import Needs, full_box

        return Needs(boxes={"full": full_box})

    def beta(self, schedule: Schedule) -> float:
        start, end = self.options.beta_start, self.options.beta_end
        return start + (end - start) * schedule.progress

    def combine(self, step: Step) -> Tensor:
        beta, box = self.beta(step.schedule), step["full"]
        if beta == 0:
            return step.loss(box)
        relaxed = step.relaxed("full")
        if beta == 1:
            return step.loss(relaxed)
        assert box.margins is not None
        assert relaxed.margins is not None
        return step.loss(box.with_margins(beta * relaxed.margins + (1 - beta) * box.margins))
