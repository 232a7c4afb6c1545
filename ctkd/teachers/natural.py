# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A teacher trained on clean images. Shows what adversarial training of the teacher is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ctkd.teachers.trained import TrainedOptions, schedule

if TYPE_CHECKING:
    from ctkd.api import TeacherContext
    from ctkd.propagate import Network


class NaturalTeacherOptions(TrainedOptions):
    """Early stopping by the accuracy on clean validation images."""

    keep: Literal["last", "best-natural"] = "last"
    """``best-natural``: the weights of the epoch with the best accuracy on validation images."""


class NaturalTeacher:
    """Trained with radius 0, where no bound method and no attack plays a part."""

    Options = NaturalTeacherOptions
    trains = True
    features = True

    def __init__(self, options: NaturalTeacherOptions) -> None:
        self.options = options

    def obtain(self, context: TeacherContext) -> Network:
        # Intervals around a single image are its prediction: what is compared is the natural accuracy.
        keep = "best-interval" if self.options.keep == "best-natural" else "last"
        train = schedule(self.options, context, keep=keep)
        return context.fit(train, {"name": "pgd"}, {"name": "adversarial"}, self.options.model)
