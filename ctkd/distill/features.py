# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Feature distillation of CC-Dist (De Palma 2026, arXiv 2602.02626), for any enclosure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from ctkd.options import NonNegative, Options

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Enclosure, Kind, Schedule, TeacherOutputs


class FeaturesOptions(Options):
    """How strongly the student follows."""

    weight: NonNegative = 5.0
    """Before division by the number of features; 5 is the value the source keeps nearly everywhere."""


class Features:
    """``weight / feature_dim * sum_j (|centre_j - t_j| + radius_j)^2``, t the teacher's features on the clean input.

    (|c - t| + r)^2 is the exact maximum of (u - t)^2 over u in [c - r, c + r], so on CC-IBP's mixed enclosure
    this is the source's term, and on a sound box it bounds the worst-case distance.
    """

    Options = FeaturesOptions
    reads: frozenset[Kind] = frozenset({"point", "box", "mixed"})
    mode: Literal["added", "replaces"] = "added"
    teacher_inputs = frozenset({"clean"})
    needs_features = True

    def __init__(self, options: FeaturesOptions) -> None:
        self.options = options

    def loss(
        self, enclosure: Enclosure, teacher: Mapping[str, TeacherOutputs], robust: Tensor, schedule: Schedule
    ) -> Tensor:
        target = teacher["clean"].features
        assert target is not None
        assert enclosure.centre is not None
        assert enclosure.radius is not None
        distance = (enclosure.centre - target).abs() + enclosure.radius
        return self.options.weight * distance.square().mean(1)
