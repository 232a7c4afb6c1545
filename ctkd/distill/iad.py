# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""IAD-I, introspective adversarial distillation on ARD (Zhu et al., ICLR 2022, arXiv 2106.04928)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.distill.predictions import clean_cross_entropy, clean_logits, logits_at
from ctkd.divergence import divergence_from
from ctkd.options import Index, NonNegative, Options, Positive, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Enclosure, Kind, Lesson


class IADOptions(Options):
    """Values of the public code, except ``begin_epoch`` and ``partial_trust``."""

    alpha: Unit = 1.0
    """Weight of both divergences together; the rest goes to the clean cross entropy."""
    beta: NonNegative = 0.1
    """Exponent of the teacher's probability of the label (β of the source); 0 is full trust, which is ARD."""
    temperature: Positive = 1.0
    """Softens both predictions in the teacher's term."""
    begin_epoch: Index = 0
    """Before this epoch (from 0) the teacher is trusted fully. The public code has 60 of 200; here runs are of any
    length, so the default is the start."""
    partial_trust: bool = True
    """Multiply the teacher's term by the trust (the paper); false leaves it alone (the public code)."""


class IAD:
    """ARD that trusts the teacher as far as it handles the student's adversarial input, and the student for the rest.

    With p the teacher, q the student, x' the bound method's point and A = p(y | x_adv)^beta of each sample, it
    replaces the point's cross entropy by

        alpha (A T^2 KL(p(x; T) || q(x'; T)) + (1 - A) KL(q(x) || q(x'))) + (1 - alpha) CE(q(x), y)

    without A before the teacher's term where ``partial_trust`` is false, and by ARD's loss before ``begin_epoch``.
    The student's own clean prediction q(x) is not detached, as in the public code. x_adv is the attack's input, x'
    whatever point the method evaluates; in adversarial training both are one.
    """

    Options = IADOptions
    reads: frozenset[Kind] = frozenset({"point"})
    teachers = 1
    teacher_inputs = frozenset({"clean", "adversarial"})
    student_points = frozenset({"clean"})
    needs_features = False
    point = "adversarial"

    def __init__(self, options: IADOptions) -> None:
        self.options = options

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        options, own = self.options, logits_at(enclosure)
        teacher = lesson.teacher
        followed = lesson.record("logits", divergence_from(teacher["clean"].logits, own, options.temperature))
        if lesson.schedule.epoch >= options.begin_epoch:
            trusted = lesson.record("trust", trust(teacher["adversarial"].logits, lesson.labels, options.beta))
            introspection = lesson.record("own", divergence_from(clean_logits(lesson), own))
            followed = (trusted if options.partial_trust else 1) * followed + (1 - trusted) * introspection
        if options.alpha == 1:
            return followed
        return options.alpha * followed + (1 - options.alpha) * lesson.record("clean", clean_cross_entropy(lesson))


def trust(teacher: Tensor, labels: Tensor, beta: float) -> Tensor:
    """``softmax(teacher)[label]^beta``, (batch, classes) -> (batch,), in [0, 1]."""
    return (beta * teacher.log_softmax(1).gather(1, labels[:, None]).squeeze(1)).exp()
