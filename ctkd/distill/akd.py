# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""AKD, adversarial knowledge distillation (Maroto et al. 2022, arXiv 2203.07159)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ctkd.distill.predictions import logits_at
from ctkd.options import Options, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Enclosure, Kind, Lesson


class AKDOptions(Options):
    """Both are open in the source as far as it could be read, so the defaults are this project's choice."""

    mix: Unit = 0.5
    """Share of the teacher's prediction in the target; 0 is adversarial training."""
    teacher_input: Literal["clean", "adversarial"] = "clean"
    """Where the teacher predicts."""


class AKD:
    """``CE(q(x'), (1 - mix) y + mix p(.))``: the label and the teacher's prediction mixed to one target.

    p is the teacher, q the student, x' the bound method's point, y one-hot. This is a reading of the source's
    abstract, "adversarially training a student on a mixture of the original labels and the teacher outputs": neither
    the share nor the teacher's input could be verified, hence both are options.

    The cross entropy is linear in its target, so the label's part is taken from the bound method's robust loss on the
    point, which need not be the cross entropy. The teacher's entropy, a constant, is not subtracted.
    """

    Options = AKDOptions
    reads: frozenset[Kind] = frozenset({"point"})
    teachers = 1
    student_points: frozenset[str] = frozenset()
    needs_features = False

    def __init__(self, options: AKDOptions) -> None:
        self.options = options
        self.teacher_inputs = frozenset({options.teacher_input})

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        from torch.nn.functional import cross_entropy

        mix, target = self.options.mix, lesson.teacher[self.options.teacher_input].logits.softmax(1)
        followed = lesson.record("soft-labels", cross_entropy(logits_at(enclosure), target, reduction="none"))
        return (1 - mix) * lesson.robust + mix * followed
