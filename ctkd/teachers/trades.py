# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A teacher trained by TRADES (Zhang et al. 2019, arXiv 1901.08573)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ctkd.options import Count, NonNegative, Positive
from ctkd.teachers.trained import AttackedOptions, fit_attacked

if TYPE_CHECKING:
    from ctkd.api import TeacherContext
    from ctkd.propagate import Network


class TRADESTeacherOptions(AttackedOptions):
    """The attack of the paper: 10 steps of about a quarter of the radius, away from the network's own prediction."""

    beta: NonNegative = 6.0
    """Of the divergence between the predictions at the clean and the attacked point (1/lambda of the source)."""
    steps: Count = 10
    """PGD steps per batch."""
    step_size: Positive = 0.25
    """Relative to the box's half-width."""
    objective: Literal["cross-entropy", "margin", "kl-student"] = "kl-student"
    """What the attack maximises; ``kl-student`` is the divergence that the loss weighs with ``beta``."""


class TRADESTeacher:
    """Minimises cross entropy at the clean point plus a divergence that the attack maximises.

    Deviation: the attack starts from a uniform point of the box, not from small Gaussian noise.
    """

    Options = TRADESTeacherOptions
    trains = True
    features = True

    def __init__(self, options: TRADESTeacherOptions) -> None:
        self.options = options

    def obtain(self, context: TeacherContext) -> Network:
        return fit_attacked(self.options, context, {"name": "trades", "beta": self.options.beta})
