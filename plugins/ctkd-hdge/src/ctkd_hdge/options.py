# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Options of the loss and of the teacher that is trained on it. Light: no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ctkd.options import Count, NonNegative, Options, Positive, Unit


class HDGEOptions(Options):
    """The contrastive term."""

    weight: NonNegative = 1.0
    """Of the contrastive term beside the cross entropy (1 in the source)."""
    temperature: Positive = 0.1
    """Divides the scores of the contrastive term."""
    queue: Annotated[Count, Field(le=10**7)] = 4096
    """Earlier samples that serve as negatives. The source has 65,536, with 50,000 training images."""


class HDGETeacherOptions(HDGEOptions):
    """The contrastive term, and the training: Adam, a learning rate that drops at milestones."""

    model: str | None = None
    """Another architecture than the student's, with its default options; None is the student's with the student's."""
    epochs: Count = 15
    """Length of the teacher's training."""
    lr: Positive = 1e-3
    """Adam's learning rate at the start."""
    milestones: tuple[Unit, ...] = (0.5, 0.75)
    """Fractions of the epochs after which the learning rate drops."""
    lr_decay: Unit = 0.2
    """Factor at each milestone."""
    batch_size: Count = 256
    """Images per step."""
