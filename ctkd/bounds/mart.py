# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""MART (Wang et al. 2020, ICLR, openreview.net/forum?id=rklOg6EFwS): misclassified samples count more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.options import NonNegative, Options

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Kind, Needs, Schedule, Step


class MARTOptions(Options):
    """The weight of the regulariser."""

    weight: NonNegative = 5.0
    """Of the divergence (λ of the source; 5 to 6 in published code)."""


class MART:
    """``BCE(adversarial) + weight (1 - p_label(clean)) KL(p(clean) || p(adversarial))``, no bounds at all.

    ``BCE = CE - log(1 - largest probability of another class)``. An estimate; mainly trains teachers.

    Deviations: everything stays in log space, where published code adds small constants to probabilities. Objectives
    act on the adversarial point and its cross entropy; the other two terms stand beside them.
    """

    Options = MARTOptions
    evaluates: frozenset[Kind] = frozenset({"point"})
    sound = False

    def __init__(self, options: MARTOptions) -> None:
        self.options = options

    def needs(self, schedule: Schedule) -> Needs:
        from ctkd.api import Needs

        return Needs(points=frozenset({"clean", "adversarial"}))

    def combine(self, step: Step) -> Tensor:
        from ctkd.divergence import divergence_from

        clean, attacked, labels = step["clean"], step["adversarial"], step.labels
        assert clean.logits is not None
        assert attacked.logits is not None
        margin = step.record("mart/margin", _rest(attacked.logits, labels))
        divergence = step.record("mart/divergence", divergence_from(clean.logits, attacked.logits))
        doubt = -clean.logits.log_softmax(1).gather(1, labels[:, None]).squeeze(1).expm1()
        return step.loss(attacked) + margin + self.options.weight * doubt * divergence


def _rest(logits: Tensor, labels: Tensor) -> Tensor:
    """``-log(1 - p)`` for the largest probability p of a class other than the label: what all but it add up to."""
    import torch

    rival = logits.scatter(1, labels[:, None], -torch.inf).argmax(1, keepdim=True)
    return logits.logsumexp(1) - logits.scatter(1, rival, -torch.inf).logsumexp(1)
