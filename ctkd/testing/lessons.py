# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Lessons that hold what an objective declared, and refuse everything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from torch import Tensor

from ctkd.api import Enclosure, Lesson, TeacherOutputs
from ctkd.testing.steps import check_loss
from ctkd.testing.subject import Subject

POINTS = frozenset({"clean", "adversarial"})
V = TypeVar("V")


@dataclass(frozen=True)
class Declared(Mapping[str, V], Generic[V]):
    """A part of a mapping; reading another key is refused with the attribute that would allow it."""

    content: Mapping[str, V]
    declared: frozenset[str]
    subject: Subject
    what: str
    attribute: str

    def __getitem__(self, key: str) -> V:
        if key not in self.declared:
            self.subject.reject(
                f"loss read {self.what}[{key!r}], and {self.attribute} is {sorted(self.declared)}",
                f"Objective.{self.attribute} names every input that the objective reads: core computes no other",
                f"add {key!r} to {self.attribute}",
            )
        return self.content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.declared))

    def __len__(self) -> int:
        return len(self.declared)


@dataclass(frozen=True)
class _LogitsOnly:
    """A teacher's outputs where no features were asked for."""

    logits: Tensor
    subject: Subject

    @property
    def features(self) -> Tensor | None:
        self.subject.reject(
            "loss read the teacher's features, and needs_features is False",
            "Objective.needs_features is True if the teacher's features are read: otherwise it meets teachers that "
            "have none",
            "set needs_features = True",
        )


class _Teachers(tuple[Mapping[str, TeacherOutputs], ...]):
    """As many teachers as were asked for."""

    subject: Subject

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, int) and i >= len(self):
            self.subject.reject(
                f"loss read lesson.teachers[{i}], and teachers is {len(self)}",
                "Objective.teachers is how many teachers it needs",
                f"set teachers = {i + 1}",
            )
        return super().__getitem__(i)


class WatchedObjective:
    """An objective that is given declared things only, and whose loss is checked at once."""

    def __init__(self, objective: Any, subject: Subject) -> None:
        self.objective, self.subject = objective, subject

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        given = {
            (i, name): outputs[name]
            for i, outputs in enumerate(lesson.teachers)
            for name in self.objective.teacher_inputs
        }
        before = {key: [part.clone() for part in _tensors(outputs)] for key, outputs in given.items()}
        found = self.objective.loss(enclosure, self._strict(lesson, given))
        for key, outputs in given.items():
            if not all(a.equal(b) for a, b in zip(_tensors(outputs), before[key], strict=True)):
                self.subject.reject(
                    f"loss changed the outputs of lesson.teachers[{key[0]}] at the {key[1]!r} input in place",
                    "a teacher's outputs are computed once a step and shared by all enclosures",
                    "use operations that return new tensors, such as softmax() in place of exp_()",
                )
        check_loss(self.subject, found, len(lesson.labels), "loss(enclosure, lesson)", "Objective.loss", scalar=False)
        return found  # type: ignore[no-any-return]

    def _strict(self, lesson: Lesson, given: Mapping[tuple[int, str], TeacherOutputs]) -> Lesson:
        objective, subject = self.objective, self.subject
        hidden: dict[int, dict[str, Any]] = {i: {} for i in range(objective.teachers)}
        for (i, name), outputs in given.items():
            hidden[i][name] = outputs if objective.needs_features else _LogitsOnly(outputs.logits, subject)
        teachers = _Teachers(
            Declared(hidden[i], objective.teacher_inputs, subject, f"lesson.teachers[{i}]", "teacher_inputs")
            for i in range(objective.teachers)
        )
        teachers.subject = subject
        points = Declared(lesson.points, objective.student_points, subject, "lesson.points", "student_points")
        return replace(lesson, teachers=teachers, points=points)


def _tensors(outputs: TeacherOutputs) -> list[Tensor]:
    return [part for part in (outputs.logits, outputs.features) if part is not None]
