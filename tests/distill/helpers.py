# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Enclosures, lessons and teachers made by hand, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ctkd.api import Enclosure, Lesson, Schedule, TeacherOutputs
from ctkd.boxes import Box
from ctkd.propagate import margins_of

from ..train.steps import RAMP, batch

BATCH, CLASSES, FEATURES = 6, 4, 5


def numbers(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, dtype=torch.float64, generator=rng)


def labels() -> Tensor:
    return torch.randint(CLASSES, (BATCH,), generator=torch.Generator().manual_seed(7))


def point(logits: Tensor, features: Tensor | None = None) -> Enclosure:
    x = logits.new_zeros(len(logits), 1)
    radius = None if features is None else torch.zeros_like(features)
    margins = margins_of(logits, labels())
    lower = lambda rows: (rows @ logits.unsqueeze(2)).squeeze(2)  # noqa: E731
    return Enclosure(Box(x, x), "point", features, radius, margins, logits, lower=lower)


def head() -> tuple[Tensor, Tensor]:
    """Weight and bias of the student's last layer."""
    return numbers(30, CLASSES, FEATURES, scale=0.7), numbers(31, CLASSES)


def box(centre: Tensor, radius: Tensor, kind: Any = "box") -> Enclosure:
    """All features within the radius, through an affine layer: its lower bounds are exact."""
    weight, bias = (part.to(centre.dtype) for part in head())

    def lower(rows: Tensor) -> Tensor:
        merged = rows @ weight
        value = merged @ centre.unsqueeze(2) - merged.abs() @ radius.unsqueeze(2)
        return value.squeeze(2) + rows @ bias

    eye = torch.eye(CLASSES, dtype=centre.dtype)
    margins = lower(eye[labels()].unsqueeze(1) - eye)
    x = centre.new_zeros(len(centre), 1)
    return Enclosure(Box(x, x + 1), kind, centre, radius, margins, lower=lower)


def lesson(
    robust: Tensor,
    teachers: Sequence[dict[str, TeacherOutputs]],
    points: dict[str, Enclosure],
    schedule: Schedule = RAMP,
    recorded: dict[str, Tensor] | None = None,
) -> Lesson:
    def record(name: str, value: Tensor) -> Tensor:
        if recorded is not None:
            recorded[name] = value
        return value

    return Lesson(robust, labels(), schedule, tuple(teachers), points, record)


def one_hot(labels: Tensor, classes: int = CLASSES) -> Tensor:
    """Logits whose probabilities are exactly 0 and 1."""
    low = torch.full((len(labels), classes), -1e6, dtype=torch.float64)
    return low.scatter(1, labels[:, None], 1e6)


class Frozen:
    """A teacher of fixed weights for 8 x 8 images, different at every input."""

    def __init__(self, seed: int) -> None:
        self.weight, self.features = numbers(seed, CLASSES, 64, scale=0.6), numbers(seed + 1, 8, 64, scale=0.2)

    def __call__(self, x: Tensor) -> TeacherOutputs:
        return TeacherOutputs(x.flatten(1) @ self.weight.T, x.flatten(1) @ self.features.T)


class Sure:
    """A one-hot teacher: right about the labels of ``one_step``, whatever the input."""

    def __call__(self, x: Tensor) -> TeacherOutputs:
        return TeacherOutputs(one_hot(batch()[1]), None)
