# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""IAD-II, introspective adversarial distillation with two teachers (Zhu et al., ICLR 2022, arXiv 2106.04928)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from ctkd.distill.iad import trust
from ctkd.distill.predictions import clean_logits, logits_at
from ctkd.divergence import divergence_from
from ctkd.options import Index, NonNegative, Options, Positive, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Enclosure, Kind, Lesson


class IADIIOptions(Options):
    """Values of the public code, except ``begin_epoch``."""

    adversarial_weight: Unit = 0.5
    """Of the adversarial teacher and the student's own term together (α1 of the public code)."""
    natural_weight: Unit = 0.25
    """Of the standard teacher (α2); what is left of 1 goes to the point's robust loss."""
    beta: NonNegative = 0.1
    """Exponent of the adversarial teacher's probability of the label (β of the source)."""
    temperature: Positive = 1.0
    """Softens both predictions in the teachers' terms."""
    begin_epoch: Index = 0
    """Before this epoch (from 0) the adversarial teacher is trusted fully. The public code has 40 of 200; here runs
    are of any length, so the default is the start."""

    @model_validator(mode="after")
    def _leaves_no_less_than_nothing(self) -> Self:
        first, second = self.adversarial_weight, self.natural_weight
        if first + second > 1:
            raise ValueError(
                f"adversarial_weight = {first:g} and natural_weight = {second:g} add up to more than 1, of which the "
                "label gets the rest"
            )
        return self


class IADII:
    """Two teachers, adversarial first, standard second, both at the adversarial input.

    With p1, p2 the teachers, q the student, x' the bound method's point and A = p1(y | x_adv)^beta of each sample, it
    replaces the point's cross entropy by

        (1 - a1 - a2) CE(q(x'), y) + a2 T^2 KL(p2(x_adv; T) || q(x'; T))
          + a1 T^2 (A KL(p1(x_adv; T) || q(x'; T)) + (1 - A) KL(q(x) || q(x')))

    As in the public code, T^2 stands before the student's own term, too, which is not softened, and q(x) is not
    detached. Before ``begin_epoch`` A is 1, the two-teacher baseline that the source calls AKD2. The first term is the
    bound method's own robust loss where it has one.
    """

    Options = IADIIOptions
    reads: frozenset[Kind] = frozenset({"point"})
    teachers = 2
    teacher_inputs = frozenset({"adversarial"})
    student_points = frozenset({"clean"})
    needs_features = False
    point = "adversarial"

    def __init__(self, options: IADIIOptions) -> None:
        self.options = options

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        options, own = self.options, logits_at(enclosure)
        first, second = (teacher["adversarial"].logits for teacher in lesson.teachers)
        followed = lesson.record("logits-adversarial-teacher", divergence_from(first, own, options.temperature))
        natural = lesson.record("logits-natural-teacher", divergence_from(second, own, options.temperature))
        if lesson.schedule.epoch >= options.begin_epoch:
            trusted = lesson.record("trust", trust(first, lesson.labels, options.beta))
            introspection = lesson.record("own", divergence_from(clean_logits(lesson), own))
            followed = trusted * followed + (1 - trusted) * options.temperature**2 * introspection
        rest = 1 - options.adversarial_weight - options.natural_weight
        return rest * lesson.robust + options.adversarial_weight * followed + options.natural_weight * natural
