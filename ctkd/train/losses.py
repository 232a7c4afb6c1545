# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The robust loss of an enclosure, the distillation objective on it, and the record of both."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ctkd.api import Enclosure, Objective, Schedule, TeacherOutputs


def margin_cross_entropy(margins: Tensor) -> Tensor:
    """``log(1 + sum over j != label of exp(-margin_j))``, (batch, classes) -> (batch,).

    The margin at the label is 0 and supplies the 1. For a point this is the cross entropy; for lower bounds of
    the margins it bounds the cross entropy over the whole set from above.
    """
    return (-margins).logsumexp(1)


def robust_loss(enclosure: Enclosure) -> Tensor:
    """(batch,): the enclosure's own loss bound where it has one, else the cross entropy of its margins."""
    if enclosure.loss is not None:
        return enclosure.loss
    assert enclosure.margins is not None
    return margin_cross_entropy(enclosure.margins)


class LossTerms:
    """Applies robust loss and objective to enclosures, and keeps each term for the log."""

    def __init__(self, objective: Objective, teacher: Mapping[str, TeacherOutputs], schedule: Schedule) -> None:
        self.objective = objective
        self.teacher = teacher
        self.schedule = schedule
        self.terms: dict[str, Tensor] = {}

    def __call__(self, enclosure: Enclosure) -> Tensor:
        robust = self.record(f"robust/{enclosure.kind}", robust_loss(enclosure))
        if enclosure.kind not in self.objective.reads or not self.teacher:
            return robust
        own = self.objective.loss(enclosure, self.teacher, robust, self.schedule)
        own = self.record(f"distill/{enclosure.kind}", own)
        return own if self.objective.mode == "replaces" else robust + own

    def record(self, name: str, value: Tensor) -> Tensor:
        same = sum(known.split("#")[0] == name for known in self.terms)
        self.terms[f"{name}#{same + 1}" if same else name] = value
        return value
