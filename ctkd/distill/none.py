# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""No distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from ctkd.options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Enclosure, Kind, Schedule, TeacherOutputs


class NoObjective:
    """Reads nothing."""

    reads: frozenset[Kind] = frozenset()
    mode: Literal["added", "replaces"] = "added"
    teacher_inputs: frozenset[str] = frozenset()
    needs_features = False

    def __init__(self, options: Options) -> None:
        self.options = options

    def loss(
        self, enclosure: Enclosure, teacher: Mapping[str, TeacherOutputs], robust: Tensor, schedule: Schedule
    ) -> Tensor:
        return robust
