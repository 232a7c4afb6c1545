# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""One batch of a training, and what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ctkd.api import TeacherOutputs
from ctkd.boxes import Box
from ctkd.randomness import Noise
from ctkd.train.lessons import Known
from ctkd.train.places import Places


@dataclass(frozen=True, eq=False)
class Batch:
    """Images and labels of a step.

    Attributes:
        noise: its randomness, of these samples.
        known: outputs of teachers that were computed before, by teacher and input.
        places: where each sample's last attack ended; None where attacks start afresh. Written to.
    """

    x: Tensor
    labels: Tensor
    noise: Noise
    known: Known | None = None
    places: Places | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: slice) -> Batch:
        """Some of its samples, with the noise that they have in the whole."""
        known = None if self.known is None else {key: _rows(value, rows) for key, value in self.known.items()}
        places = None if self.places is None else self.places.part(rows)
        return Batch(self.x[rows], self.labels[rows], self.noise.part(rows), known, places)

    def again(self) -> Batch:
        """The same with the same noise once more, whatever is drawn from this one's."""
        return replace(self, noise=self.noise.part(slice(None)))

    def start_in(self, box: Box) -> Tensor | None:
        """Where attacks in ``box`` begin: like ``x``, NaN for samples that were not attacked yet."""
        return None if self.places is None else self.places.inside(box)

    def remember(self, points: Tensor, box: Box) -> None:
        """Keep where attacks in ``box`` ended."""
        if self.places is not None:
            self.places.keep(points, box)


def _rows(outputs: TeacherOutputs, rows: slice) -> TeacherOutputs:
    return TeacherOutputs(outputs.logits[rows], None if outputs.features is None else outputs.features[rows])
