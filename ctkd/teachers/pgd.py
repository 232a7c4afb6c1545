# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A teacher trained adversarially on multi-step PGD points (Madry et al. 2018, arXiv 1706.06083)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.teachers.trained import AttackedOptions, fit_attacked

if TYPE_CHECKING:
    from ctkd.api import TeacherContext
    from ctkd.propagate import Network


class PGDTeacher:
    """Minimises the cross entropy at the attacked point."""

    Options = AttackedOptions
    trains = True
    features = True

    def __init__(self, options: AttackedOptions) -> None:
        self.options = options

    def obtain(self, context: TeacherContext) -> Network:
        return fit_attacked(self.options, context, {"name": "adversarial"})
