# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""CROWN-IBP (Zhang et al. 2020, arXiv 1906.06316): one backward linear relaxation on interval bounds.

Loss fusion: Xu et al. 2020, arXiv 2002.12920.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ctkd.options import Options, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Enclosure, Kind, Needs, Schedule, Step


class CrownIBPOptions(Options):
    """beta weighs the relaxation's margins against interval margins (β in Section 4 of the source)."""

    beta_start: Unit = 1.0
    """β where the ramp begins; 1 is the pure relaxation."""
    beta_end: Unit = 1.0
    """β from the end of the ramp on. The source ends at 0 (pure intervals); see docs/results for the default."""
    loss_fusion: bool = False
    """Bound the loss itself by one backward row per sample instead of one for each class: cheaper with many classes,
    and looser."""


class CrownIBP:
    """Margins ``beta * relaxation + (1 - beta) * intervals``, a lower bound because both are. Sound.

    With ``loss_fusion`` the summed exponentials of the loss are bounded in their place, see ``fused``. Sound too.
    """

    Options = CrownIBPOptions
    evaluates: frozenset[Kind] = frozenset({"box"})
    sound = True

    def __init__(self, options: CrownIBPOptions) -> None:
        self.options = options
        self.own_loss = options.loss_fusion

    def needs(self, schedule: Schedule) -> Needs:
        from ctkd.api import Needs, full_box

        return Needs(boxes={"full": full_box})

    def combine(self, step: Step) -> Tensor:
        beta, box = step.schedule.between(self.options.beta_start, self.options.beta_end), step["full"]
        if beta == 0:
            return step.loss(box)
        if self.options.loss_fusion:
            return step.loss(fused(step, "full", beta))
        relaxed = step.relaxed("full")
        if beta == 1:
            return step.loss(relaxed)
        assert box.margins is not None
        assert relaxed.margins is not None
        margins = beta * relaxed.margins + (1 - beta) * box.margins
        return step.loss(box.with_margins(margins, mixed(step, "full", beta)))


def fused(step: Step, name: str, beta: float) -> Enclosure:
    """The box with an upper bound of its loss, ``log(1 + sum over j of exp(-z_j))`` for margins z_j, from one row.

    exp is convex, so over interval margins [zl, zu] it is below its chord:
    ``exp(-z) <= e (1 - s (z - zl))`` with e = exp(-zl), s = (1 - exp(-w)) / w, w = zu - zl. The sum of the chords is
    linear in the logits; its relaxed bound C is mixed with the intervals' I, the sum of all e:
    ``log(1 + beta C + (1 - beta) I)``. (For beta = 1 it is the source's; the mix is of the sums, as there.)

    The largest exponent is taken out of every term before anything is exponentiated, so no margin overflows; the
    sum is clamped below by the smallest normal number only.
    """
    import torch

    box, label = step[name], step.labels[:, None]
    lowest, highest = box.margins, box.upper_margins
    assert lowest is not None
    assert highest is not None
    # What is factored out cancels in the value, so its gradient is zero altogether. The label's 0 is among them.
    largest = (-lowest).amax(1).detach()
    e = (-lowest - largest[:, None]).exp().scatter(1, label, 0.0)
    steep = e * _mean_decay((highest - lowest).clamp(min=0))
    row = (-steep).scatter(1, label, steep.sum(1, keepdim=True))  # the sum of steep_j (e_label - e_j)
    chords = (e + steep * lowest).sum(1) - step.relaxed_lower(name, row.unsqueeze(1)).squeeze(1)
    total = (-largest).exp() + beta * chords + (1 - beta) * e.sum(1)
    loss = largest + total.clamp(min=torch.finfo(total.dtype).tiny).log()
    return replace(box, loss=loss, margins=None, upper_margins=None, lower=mixed(step, name, beta))


def mixed(step: Step, name: str, beta: float) -> Callable[[Tensor], Tensor]:
    """``beta * relaxation + (1 - beta) * intervals`` for any functionals of the logits."""
    interval = step[name].lower
    assert interval is not None
    return lambda rows: beta * step.relaxed_lower(name, rows) + (1 - beta) * interval(rows)


def _mean_decay(width: Tensor) -> Tensor:
    """``(1 - exp(-w)) / w`` for w >= 0: the mean of exp(-t) over [0, w]; a series where w is nearly 0."""
    import torch

    narrow = width < 1e-4
    # The denominator is replaced where it is not used, so that no gradient becomes 0 * inf.
    safe = torch.where(narrow, torch.ones_like(width), width)
    return torch.where(narrow, 1 - width / 2 + width.square() / 6, -torch.expm1(-safe) / safe)
