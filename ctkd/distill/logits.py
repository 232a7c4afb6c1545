# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Logit distillation of AD-CERT (Melis et al. 2026, arXiv 2606.31653)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import ValidationInfo, field_validator

from ctkd.distill.predictions import clean_logits, logits_at
from ctkd.divergence import divergence_from
from ctkd.options import Options, Positive, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Enclosure, Kind, Lesson


class LogitsOptions(Options):
    """How the teacher's prediction replaces the label."""

    variant: Literal["adversarial", "natural"] = "adversarial"
    """``adversarial``: AD-CERT, at the bound method's point; ``natural``: at the clean input, the public code's
    ``use-nat-kl``."""
    weight: Unit = 1.0
    """1 replaces the point's cross entropy altogether (the source); 0 leaves it alone."""
    temperature: Positive = 1.0
    """Softens both predictions; the divergence is multiplied by its square. The source has 1."""
    teacher_input: Literal["clean", "adversarial"] = "clean"
    """Where the teacher predicts in AD-CERT; the source offers both. ``natural`` has ``clean``."""

    @field_validator("teacher_input")
    @classmethod
    def _fits_the_variant(cls, value: str, info: ValidationInfo) -> str:
        if value != "clean" and info.data.get("variant", "adversarial") != "adversarial":
            raise ValueError(f"must be 'clean' with variant = {info.data['variant']}")
        return value


class Logits:
    """A divergence from the teacher's prediction in the place of the point's cross entropy. Boxes keep theirs.

    With p the teacher, q the student, x' the bound method's point:

        adversarial   KL(p(x) || q(x'))
        natural       KL(p(x) || q(x))

    With a one-hot teacher the first is the cross entropy, so with ``mtl-ibp`` it reduces to MTL-IBP. Their mixture,
    the source's RSLAD-CERT, is ``rslad`` with ``mtl-ibp``. The soft-label attack of the source, which maximises
    KL(p(x) || q(x')), is ``attack.objective=kl-teacher``.

    The KL is a sum over the classes and a mean over the batch, as in the source.
    """

    Options = LogitsOptions
    reads: frozenset[Kind] = frozenset({"point"})
    teachers = 1
    needs_features = False

    def __init__(self, options: LogitsOptions) -> None:
        self.options = options
        self.teacher_inputs = frozenset({options.teacher_input})
        self.student_points = frozenset({"clean"}) if options.variant == "natural" else frozenset[str]()

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        weight, teacher = self.options.weight, lesson.teacher[self.options.teacher_input].logits
        natural = self.options.variant == "natural"
        own = clean_logits(lesson) if natural else logits_at(enclosure)
        divergence = divergence_from(teacher, own, self.options.temperature)
        lesson.record("logits-clean" if natural else "logits", divergence)
        return divergence if weight == 1 else (1 - weight) * lesson.robust + weight * divergence
