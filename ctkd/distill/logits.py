# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Logit distillation of AD-CERT (Melis et al. 2026, arXiv 2606.31653)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from ctkd.options import Options, Positive, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Enclosure, Kind, Schedule, TeacherOutputs


class LogitsOptions(Options):
    """How the teacher's prediction replaces the label."""

    weight: Unit = 1.0
    """1 replaces the point's cross entropy altogether (the source); 0 leaves it alone."""
    temperature: Positive = 1.0
    """Softens both predictions; the term is multiplied by its square. The source has 1."""
    teacher_input: Literal["clean", "adversarial"] = "clean"
    """Where the teacher predicts; the source offers both."""


class Logits:
    """``KL(teacher(x) || student(point))`` in the place of the point's cross entropy. Boxes keep theirs.

    With a one-hot teacher it is the cross entropy, so with ``mtl-ibp`` it reduces to MTL-IBP.
    """

    Options = LogitsOptions
    reads: frozenset[Kind] = frozenset({"point"})
    mode: Literal["added", "replaces"] = "replaces"
    needs_features = False

    def __init__(self, options: LogitsOptions) -> None:
        self.options = options
        self.teacher_inputs = frozenset({options.teacher_input})

    def loss(
        self, enclosure: Enclosure, teacher: Mapping[str, TeacherOutputs], robust: Tensor, schedule: Schedule
    ) -> Tensor:
        from torch.nn.functional import kl_div

        assert enclosure.logits is not None
        temperature, weight = self.options.temperature, self.options.weight
        target = (teacher[self.options.teacher_input].logits / temperature).softmax(1)
        student = (enclosure.logits / temperature).log_softmax(1)
        # kl_div takes p log p as 0 at p = 0.
        divergence = kl_div(student, target, reduction="none").sum(1) * temperature**2
        return divergence if weight == 1 else (1 - weight) * robust + weight * divergence
