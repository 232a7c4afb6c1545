# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What the objectives on predictions share: the Kullback-Leibler divergence, and the student's logits at a point."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Enclosure, Lesson


def divergence_from(reference: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """``T^2 KL(softmax(reference / T) || softmax(logits / T))`` of each sample, (batch, classes) twice -> (batch,).

    A sum over the classes: code that averages over all elements has values smaller by the number of classes. 0 log 0
    is 0. Gradients flow through both arguments, also where a probability is rounded to 0: hence logarithms throughout.
    """
    from torch.nn.functional import kl_div

    target = (reference / temperature).log_softmax(1)
    own = (logits / temperature).log_softmax(1)
    return kl_div(own, target, reduction="none", log_target=True).sum(1) * temperature**2


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
