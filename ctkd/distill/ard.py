# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""ARD, adversarially robust distillation (Goldblum et al. 2020, arXiv 1905.09747)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.distill.predictions import clean_cross_entropy, logits_at
from ctkd.divergence import divergence_from
from ctkd.options import Options, Positive, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Enclosure, Kind, Lesson


class ARDOptions(Options):
    """The defaults are those of the public code."""

    alpha: Unit = 1.0
    """Weight of the divergence (α of the source); the rest goes to the clean cross entropy."""
    temperature: Positive = 30.0
    """Softens both predictions (t of the source)."""


class ARD:
    """``alpha T^2 KL(p(x; T) || q(x'; T)) + (1 - alpha) CE(q(x), y)``, in the place of the point's cross entropy.

    p is the teacher, q the student, x' the bound method's point. At alpha 1 and T 1 it is AD-CERT's term
    (``logits``). The KL is a sum over the classes, as in the paper; the public code averages over them, too, so there
    the cross entropy weighs more by the number of classes.
    """

    Options = ARDOptions
    reads: frozenset[Kind] = frozenset({"point"})
    teachers = 1
    teacher_inputs = frozenset({"clean"})
    needs_features = False

    def __init__(self, options: ARDOptions) -> None:
        self.options = options
        self.student_points = frozenset({"clean"}) if options.alpha < 1 else frozenset[str]()

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        alpha = self.options.alpha
        teacher = lesson.teacher["clean"].logits
        followed = lesson.record("logits", divergence_from(teacher, logits_at(enclosure), self.options.temperature))
        if alpha == 1:
            return followed
        return alpha * followed + (1 - alpha) * lesson.record("clean", clean_cross_entropy(lesson))
