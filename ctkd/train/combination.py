# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What a bound method sees of a step, and the enclosures in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ctkd.api import Enclosure, PropagationBackend, Schedule
from ctkd.boxes import Box
from ctkd.propagate import Bounds, Flow, Network, at_classes, margin_specification, margins_of
from ctkd.randomness import Noise
from ctkd.train.losses import LossTerms


@dataclass(eq=False)
class Combination:
    """The view of a step that a bound method combines (``ctkd.api.Step``)."""

    schedule: Schedule
    labels: Tensor
    network: Network
    flow: Flow | None
    loss: LossTerms
    enclosures: Mapping[str, Enclosure]
    backend: PropagationBackend
    noise: Noise
    rows: Mapping[str, slice] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Enclosure:
        return self.enclosures[name]

    def bounds(self, name: str) -> Bounds:
        rows = self.rows[name]
        assert self.flow is not None
        return {i: (lower[rows], upper[rows]) for i, (lower, upper) in self.flow.pre_activation.items()}

    def relaxed_lower(self, name: str, rows: Tensor) -> Tensor:
        return self.backend.relaxed_lower(self.network, self.bounds(name), self.enclosures[name].inputs, rows)

    def relaxed(self, name: str) -> Enclosure:
        box = self.enclosures[name]
        rows, others = margin_specification(self.labels, self.network.classes, box.inputs.lower.dtype)
        margins = at_classes(self.relaxed_lower(name, rows), others)
        return box.with_margins(margins, lambda rows: self.relaxed_lower(name, rows))

    def record(self, name: str, value: Tensor) -> Tensor:
        return self.loss.record(name, value)


def point_enclosure(x: Tensor, logits: Tensor, features: Tensor | None, labels: Tensor) -> Enclosure:
    radius = None if features is None else torch.zeros_like(features)
    margins = margins_of(logits, labels)
    return Enclosure(
        Box(x, x),
        "point",
        features,
        radius,
        margins,
        logits,
        lower=lambda rows: (rows @ logits.unsqueeze(2)).squeeze(2),
        upper_margins=margins,
    )
