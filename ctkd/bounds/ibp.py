# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Interval bound propagation (Gowal et al. 2018, arXiv 1810.12715)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Kind, Needs, Schedule, Step


class IBP:
    """The loss of the interval margins of the full box, the specification merged into the last layer.

    A sound bound of the worst-case loss.

    The clean loss of the source is the training option ``kappa``; initialisation and regularisers of Shi et al.
    2021 (arXiv 2103.15887) are training options too.
    """

    evaluates: frozenset[Kind] = frozenset({"box"})
    sound = True

    def __init__(self, options: Options) -> None:
        self.options = options

    def needs(self, schedule: Schedule) -> Needs:
        from ctkd.api import Needs, full_box

        return Needs(boxes={"full": full_box})

    def combine(self, step: Step) -> Tensor:
        return step.loss(step["full"])
