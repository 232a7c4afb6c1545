# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Adversarial training (Madry et al. 2018, arXiv 1706.06083): the loss at one attacked point. Gives no guarantee."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Kind, Needs, Schedule, Step


class Adversarial:
    """The step's attack gives the point; a sound bound plays no part."""

    evaluates: frozenset[Kind] = frozenset({"point"})
    sound = False

    def __init__(self, options: Options) -> None:
        self.options = options

    def needs(self, schedule: Schedule) -> Needs:
        from ctkd.api import Needs

        return Needs(points=frozenset({"adversarial"}))

    def combine(self, step: Step) -> Tensor:
        return step.loss(step["adversarial"])
