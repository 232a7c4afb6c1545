# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Exp-IBP (De Palma et al. 2024, arXiv 2305.13991, Section 4): mix the logarithms of the losses of point and box."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.options import Options, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Kind, Needs, Schedule, Step


class ExpIBPOptions(Options):
    """How the two losses are mixed."""

    alpha: Unit = 0.5
    """Weight of the box's loss (α of the source); 1 is IBP, 0 is adversarial training."""


class ExpIBP:
    """``mean(loss(box))^alpha * mean(loss(point))^(1 - alpha)``, a scalar. An estimate, not a bound, for alpha < 1.

    The means are over the batch, as in the published code. By the inequality of arithmetic and geometric means it
    is never above the batch mean of MTL-IBP's loss at the same alpha.

    A mean of zero counts as the smallest normal number, and then has no gradient: the power's own would be infinite.
    """

    Options = ExpIBPOptions
    evaluates: frozenset[Kind] = frozenset({"point", "box"})
    sound = False

    def __init__(self, options: ExpIBPOptions) -> None:
        self.options = options

    def needs(self, schedule: Schedule) -> Needs:
        from ctkd.api import Needs, full_box

        return Needs(points=frozenset({"adversarial"}), boxes={"full": full_box})

    def combine(self, step: Step) -> Tensor:
        alpha = self.options.alpha
        if alpha in (0, 1):  # so that no infinite loss of weight 0 becomes NaN
            return step.loss(step["full"] if alpha else step["adversarial"])
        point, box = (_log_mean(step.loss(step[name])) for name in ("adversarial", "full"))
        return ((1 - alpha) * point + alpha * box).exp()


def _log_mean(loss: Tensor) -> Tensor:
    import torch

    from ctkd.api import batch_mean

    return batch_mean(loss).clamp(min=torch.finfo(loss.dtype).tiny).log()
