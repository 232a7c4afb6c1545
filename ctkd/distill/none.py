# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""No distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Enclosure, Kind, Lesson


class NoObjective:
    """Reads nothing."""

    reads: frozenset[Kind] = frozenset()
    teachers = 0
    teacher_inputs: frozenset[str] = frozenset()
    student_points: frozenset[str] = frozenset()
    needs_features = False

    def __init__(self, options: Options) -> None:
        self.options = options

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        return lesson.robust
