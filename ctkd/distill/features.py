# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Feature distillation of CC-Dist (De Palma 2026, arXiv 2602.02626), for any enclosure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ctkd.errors import BadInput
from ctkd.options import NonNegative, Options

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ctkd.api import Enclosure, Kind, Lesson


class FeaturesOptions(Options):
    """How strongly the student follows."""

    weight: NonNegative = 5.0
    """Before division by the number of features; 5 is the value the source keeps nearly everywhere."""
    map: Literal["none", "linear"] = "none"
    """``linear`` learns a linear map from the student's features to the teacher's, for unequal architectures."""


class Features:
    """``weight / feature_dim * sum_j (|centre_j - t_j| + radius_j)^2``, t the teacher's features on the clean input.

    (|c - t| + r)^2 is the exact maximum of (u - t)^2 over u in [c - r, c + r], so on CC-IBP's mixed enclosure
    this is the source's term, and on a sound box it bounds the worst-case distance.

    With ``map="linear"`` a trainable matrix A, without bias, stands before it: centre ``A centre``, radius
    ``|A| radius``, so the term still bounds the worst-case distance. The map is the student's side, because the
    teacher's features are what is to be reached; it is not part of the trained network. (Not in the source.)
    """

    Options = FeaturesOptions
    reads: frozenset[Kind] = frozenset({"point", "box", "mixed"})
    teachers = 1
    teacher_inputs = frozenset({"clean"})
    student_points: frozenset[str] = frozenset()
    needs_features = True

    def __init__(self, options: FeaturesOptions, name: str = "features") -> None:
        self.options = options
        self.name = name
        self.matrix: Tensor | None = None

    def prepare(self, widths: tuple[int | None, int | None], generator: torch.Generator) -> list[Tensor]:
        import torch

        student, teacher = widths
        if student is None or teacher is None:
            who = "student" if student is None else "teacher"
            raise BadInput(f"distill.name={self.name} needs features, and the {who} has none (no last Linear layer)")
        if self.options.map == "none":
            if student != teacher:
                raise BadInput(
                    f"distill.name={self.name} compares {student} features of the student with {teacher} of the "
                    "teacher; set distill.map=linear, choose models of equal width, or --distill logits"
                )
            return []
        self.matrix = (torch.randn(teacher, student, generator=generator) / student**0.5).requires_grad_()
        return [self.matrix]

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        return lesson.robust + lesson.record("features", self.distance(enclosure, lesson))

    def distance(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        """The weighted term, (batch,)."""
        target, centre, radius = lesson.teacher["clean"].features, enclosure.centre, enclosure.radius
        assert target is not None
        assert centre is not None
        assert radius is not None
        centre, radius, target = centre.flatten(1), radius.flatten(1), target.flatten(1)
        if self.matrix is not None:
            matrix = self.matrix.to(centre.dtype)
            centre, radius = centre @ matrix.T, radius @ matrix.T.abs()
        return self.options.weight * ((centre - target).abs() + radius).square().mean(1)
