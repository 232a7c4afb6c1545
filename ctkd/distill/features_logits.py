# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Features and logits together: CC-Dist's term and AD-CERT's in one objective. Nobody has published this."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ctkd.distill.features import Features, FeaturesOptions
from ctkd.distill.logits import Logits, LogitsOptions
from ctkd.options import NonNegative, Options, Positive, Unit

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ctkd.api import Enclosure, Kind, Lesson


class FeaturesLogitsOptions(Options):
    """The options of ``features`` and ``logits``, both weights with a name of their own."""

    feature_weight: NonNegative = 5.0
    """As ``weight`` of ``features``: before division by the number of features."""
    map: Literal["none", "linear"] = "none"
    """As in ``features``."""
    logit_weight: Unit = 1.0
    """As ``weight`` of ``logits``: how far the divergence replaces the point's cross entropy."""
    temperature: Positive = 1.0
    """As in ``logits``."""
    teacher_input: Literal["clean", "adversarial"] = "clean"
    """Where the teacher predicts; its features are always those of the clean input."""


class FeaturesLogits:
    """``features`` on every enclosure, added, and on points ``logits`` in the place of the cross entropy.

    A proposal of this project without a source: the sum of CC-Dist's term (De Palma 2026, arXiv 2602.02626) and
    AD-CERT's (Melis et al. 2026, arXiv 2606.31653). With ``logit_weight=0`` it is ``features``, with
    ``feature_weight=0`` on points ``logits``.

    A method that evaluates no points, such as ``ibp``, ``crown-ibp`` or ``cc-ibp``, has no prediction to compare: there
    it is plain ``features``. With ``mtl-ibp`` both act.
    """

    Options = FeaturesLogitsOptions
    reads: frozenset[Kind] = frozenset({"point", "box", "mixed"})
    teachers = 1
    student_points: frozenset[str] = frozenset()
    needs_features = True

    def __init__(self, options: FeaturesLogitsOptions) -> None:
        self.features = Features(FeaturesOptions(weight=options.feature_weight, map=options.map), "features+logits")
        self.logits = Logits(
            LogitsOptions(
                weight=options.logit_weight, temperature=options.temperature, teacher_input=options.teacher_input
            )
        )
        self.teacher_inputs = self.features.teacher_inputs | self.logits.teacher_inputs

    def prepare(self, widths: tuple[int | None, int | None], generator: torch.Generator) -> list[Tensor]:
        return self.features.prepare(widths, generator)

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        if enclosure.kind not in self.logits.reads:
            return self.features.loss(enclosure, lesson)
        term = lesson.record("features", self.features.distance(enclosure, lesson))
        return self.logits.loss(enclosure, lesson) + term
