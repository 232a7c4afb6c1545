# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A teacher trained on clean images. Shows what adversarial training of the teacher is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.teachers.trained import TrainedOptions, schedule

if TYPE_CHECKING:
    from ctkd.api import TeacherContext
    from ctkd.propagate import Network


class NaturalTeacher:
    """Trained with radius 0, where no bound method and no attack plays a part."""

    Options = TrainedOptions
    trains = True
    features = True

    def __init__(self, options: TrainedOptions) -> None:
        self.options = options

    def obtain(self, context: TeacherContext) -> Network:
        train = schedule(self.options, context)
        return context.fit(train, {"name": "pgd"}, {"name": "adversarial"}, self.options.model)
