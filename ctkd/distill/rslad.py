# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""RSLAD, robust soft label adversarial distillation (Zi et al. 2021, arXiv 2108.07969), and RSLAD-CERT."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ctkd.distill.predictions import clean_logits, logits_at
from ctkd.divergence import divergence_from
from ctkd.options import NonNegative, Options

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Enclosure, Kind, Lesson


class RSLADOptions(Options):
    """The defaults are those of the source."""

    adversarial_weight: NonNegative = 5 / 6
    """Of the divergence at the bound method's point."""
    clean_weight: NonNegative = 1 / 6
    """Of the divergence at the clean input."""


class RSLAD:
    """``5/6 KL(p(x) || q(x')) + 1/6 KL(p(x) || q(x))``: no labels at all, in the place of the point's cross entropy.

    p is the teacher, q the student, x' the bound method's point. With ``adversarial`` it is RSLAD, with ``mtl-ibp``
    RSLAD-CERT (Melis et al. 2026, arXiv 2606.31653), which at alpha 0 is RSLAD; ``logits`` has the same with a
    temperature and a weight. It brings the attack of the source,
    which maximises KL(p(x) || q(x')): ``attack.objective=kl-teacher``. The KL is a sum over the classes, as in the
    paper; the public code averages over them, too (and multiplies by 10 for 100 classes).
    """

    Options = RSLADOptions
    attack: ClassVar[dict[str, str]] = {"objective": "kl-teacher"}
    reads: frozenset[Kind] = frozenset({"point"})
    teachers = 1
    teacher_inputs = frozenset({"clean"})
    student_points = frozenset({"clean"})
    needs_features = False
    point = "adversarial"

    def __init__(self, options: RSLADOptions) -> None:
        self.options = options

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        return soft_labels(enclosure, lesson, self.options.adversarial_weight, self.options.clean_weight)


def soft_labels(
    enclosure: Enclosure, lesson: Lesson, at_point: float = 5 / 6, at_clean: float = 1 / 6, temperature: float = 1.0
) -> Tensor:
    """(batch,): the weighted divergences from the teacher's clean prediction, at the point and at the clean input."""
    teacher = lesson.teacher["clean"].logits
    point = lesson.record("logits", divergence_from(teacher, logits_at(enclosure), temperature))
    clean = lesson.record("logits-clean", divergence_from(teacher, clean_logits(lesson), temperature))
    return at_point * point + at_clean * clean
