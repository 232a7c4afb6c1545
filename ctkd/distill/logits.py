# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Logit distillation of AD-CERT and RSLAD-CERT (Melis et al. 2026, arXiv 2606.31653)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import ValidationInfo, field_validator

from ctkd.distill.predictions import clean_logits, logits_at
from ctkd.distill.rslad import soft_labels
from ctkd.divergence import divergence_from
from ctkd.options import Options, Positive, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Enclosure, Kind, Lesson


class LogitsOptions(Options):
    """How the teacher's prediction replaces the label."""

    variant: Literal["adversarial", "rslad", "natural"] = "adversarial"
    """``adversarial``: AD-CERT, at the bound method's point; ``rslad``: RSLAD-CERT, at both, which brings
    ``attack.objective=kl-teacher``; ``natural``: at the clean input only, the public code's ``use-nat-kl``."""
    weight: Unit = 1.0
    """1 replaces the point's cross entropy altogether (the source); 0 leaves it alone."""
    temperature: Positive = 1.0
    """Softens both predictions; the divergence is multiplied by its square. The source has 1."""
    teacher_input: Literal["clean", "adversarial"] = "clean"
    """Where the teacher predicts in AD-CERT; the source offers both. The other variants have ``clean``."""

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
        rslad         5/6 KL(p(x) || q(x')) + 1/6 KL(p(x) || q(x)), as ``rslad`` has it
        natural       KL(p(x) || q(x))

    With a one-hot teacher the first is the cross entropy, so with ``mtl-ibp`` it reduces to MTL-IBP; the second with
    ``mtl-ibp`` at alpha 0 is RSLAD. The soft-label attack of the source, which maximises KL(p(x) || q(x')), is
    ``attack.objective=kl-teacher``: a default with ``rslad``, to be set with the others.

    The KL is a sum over the classes and a mean over the batch, as in the source.
    """

    Options = LogitsOptions
    reads: frozenset[Kind] = frozenset({"point"})
    teachers = 1
    needs_features = False

    def __init__(self, options: LogitsOptions) -> None:
        self.options = options
        self.teacher_inputs = frozenset({options.teacher_input})
        self.student_points = frozenset[str]() if options.variant == "adversarial" else frozenset({"clean"})
        self.point = "adversarial" if options.variant == "rslad" else "any"
        self.attack = {"objective": "kl-teacher"} if options.variant == "rslad" else {}

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        weight = self.options.weight
        divergence = self._divergence(enclosure, lesson)
        return divergence if weight == 1 else (1 - weight) * lesson.robust + weight * divergence

    def _divergence(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        variant, temperature = self.options.variant, self.options.temperature
        if variant == "rslad":
            return soft_labels(enclosure, lesson, temperature=temperature)
        name, own = ("logits-clean", clean_logits(lesson)) if variant == "natural" else ("logits", logits_at(enclosure))
        teacher = lesson.teacher[self.options.teacher_input].logits
        return lesson.record(name, divergence_from(teacher, own, temperature))
