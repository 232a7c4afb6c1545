# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The robust loss of an enclosure with the distillation objective on it, and the record of every term."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ctkd.api import Enclosure, Lesson, Objective, Schedule, TeacherOutputs
from ctkd.contract import check_loss


class LossTerms:
    """Applies robust loss and objective to enclosures, and keeps each term for the log.

    Attributes:
        teachers: the outputs of each teacher by input; empty while nothing is taught.
        claims: the enclosures seen that claim to hold for a box.
        label: how messages name the objective.
        points: the student's enclosures that the objective asked for; filled once they are known.
    """

    def __init__(
        self,
        objective: Objective,
        teachers: tuple[Mapping[str, TeacherOutputs], ...],
        labels: Tensor,
        schedule: Schedule,
        label: str = "the objective",
    ) -> None:
        self.objective = objective
        self.teachers = teachers
        self.labels = labels
        self.schedule = schedule
        self.label = label
        self.points: Mapping[str, Enclosure] = {}
        self.terms: dict[str, Tensor] = {}
        self.claims: list[Enclosure] = []

    def __call__(self, enclosure: Enclosure) -> Tensor:
        if enclosure.kind == "box":
            # Without what may lead back to the step: a cycle would keep all its bounds until the garbage is collected.
            self.claims.append(replace(enclosure, lower=None))
        robust = self.record(f"robust/{enclosure.kind}", enclosure.robust_loss())
        if enclosure.kind not in self.objective.reads or not self.teachers:
            return robust
        lesson = Lesson(
            robust=robust,
            labels=self.labels,
            schedule=self.schedule,
            teachers=self.teachers,
            points=self.points,
            record=lambda name, value: self.record(f"distill/{name}/{enclosure.kind}", value),
        )
        loss = self.objective.loss(enclosure, lesson)
        check_loss(loss, len(self.labels), f"loss of {self.label}", per_sample=True)
        return loss

    def record(self, name: str, value: Tensor) -> Tensor:
        same = sum(known.split("#")[0] == name for known in self.terms)
        self.terms[f"{name}#{same + 1}" if same else name] = value
        return value
