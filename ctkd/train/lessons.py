# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Teachers' outputs on the training images, computed once where images stay the same from epoch to epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ctkd.api import TeacherOutputs
from ctkd.progress import Reporter

Known = Mapping[tuple[int, str], TeacherOutputs]
"""Outputs by teacher and input."""
BATCH = 1000
"""Images that a teacher is given at once."""


@dataclass(frozen=True, eq=False)
class Lessons:
    """What each teacher answers to each training image; features and logits, in the order of the images."""

    outputs: Sequence[TeacherOutputs]

    def at(self, rows: Tensor) -> Known:
        """The outputs at some images, by teacher and input (``clean``)."""
        return {
            (i, "clean"): TeacherOutputs(known.logits[rows], None if known.features is None else known.features[rows])
            for i, known in enumerate(self.outputs)
        }


def learn(teachers: Sequence[Callable[[Tensor], TeacherOutputs]], images: Tensor, reporter: Reporter) -> Lessons:
    """Ask all teachers about all images."""
    reporter.begin("asking the teacher", len(teachers) * len(images))
    try:
        return Lessons([_answers(teacher, images, reporter) for teacher in teachers])
    finally:
        reporter.end()


def _answers(teacher: Callable[[Tensor], TeacherOutputs], images: Tensor, reporter: Reporter) -> TeacherOutputs:
    parts = []
    for batch in torch.split(images, BATCH):  # images.split is untyped
        parts.append(teacher(batch))
        reporter.advance(len(batch))
    features = [part.features for part in parts if part.features is not None]
    return TeacherOutputs(torch.cat([part.logits for part in parts]), torch.cat(features) if features else None)
