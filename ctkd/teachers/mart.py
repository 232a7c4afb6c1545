# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A teacher trained by MART, which weighs misclassified images (Wang et al., ICLR 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.options import Count, NonNegative, Positive
from ctkd.teachers.trained import AttackedOptions, fit_attacked

if TYPE_CHECKING:
    from ctkd.api import TeacherContext
    from ctkd.propagate import Network


class MARTTeacherOptions(AttackedOptions):
    """The attack of the paper: 10 steps of about a quarter of the radius on the cross entropy."""

    weight: NonNegative = 5.0
    """Of the divergence between the predictions at both points (lambda of the source)."""
    steps: Count = 10
    """PGD steps per batch."""
    step_size: Positive = 0.25
    """Relative to the box's half-width."""


class MARTTeacher:
    """Minimises a boosted cross entropy at the attacked point plus a divergence weighted by the clean error."""

    Options = MARTTeacherOptions
    trains = True
    features = True

    def __init__(self, options: MARTTeacherOptions) -> None:
        self.options = options

    def obtain(self, context: TeacherContext) -> Network:
        return fit_attacked(self.options, context, {"name": "mart", "weight": self.options.weight})
