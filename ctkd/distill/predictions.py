# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What the objectives on predictions share: the student's logits at the points they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Enclosure, Lesson


def logits_at(point: Enclosure) -> Tensor:
    """The student's logits at a point, (batch, classes)."""
    assert point.logits is not None
    return point.logits


def clean_logits(lesson: Lesson) -> Tensor:
    """The student's logits at the clean input, for objectives whose ``student_points`` name it."""
    return logits_at(lesson.points["clean"])


def clean_cross_entropy(lesson: Lesson) -> Tensor:
    """``CE(student(x), label)``, (batch,), for objectives whose ``student_points`` name the clean input."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(clean_logits(lesson), lesson.labels, reduction="none")
