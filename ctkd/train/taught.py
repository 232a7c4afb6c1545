# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The teachers' outputs in a step, each computed once and only if it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ctkd.api import TeacherOutputs


@dataclass(eq=False)
class Taught:
    """The teachers' outputs, each computed once."""

    teachers: Sequence[Callable[[Tensor], TeacherOutputs]]
    inputs: Mapping[str, Tensor]
    known: dict[tuple[int, str], TeacherOutputs] = field(default_factory=dict)

    def __call__(self, i: int, name: str) -> TeacherOutputs:
        if (i, name) not in self.known:
            self.known[i, name] = self.teachers[i](self.inputs[name])
        return self.known[i, name]

    def lessons(self, names: frozenset[str]) -> tuple[Mapping[str, TeacherOutputs], ...]:
        """For each teacher a mapping from inputs to outputs."""
        return tuple(_Answers(self, i, names) for i in range(len(self.teachers)))


@dataclass(frozen=True)
class _Answers(Mapping[str, TeacherOutputs]):
    """One teacher's outputs by input, computed when they are read: not every teacher is asked at every input."""

    taught: Taught
    i: int
    names: frozenset[str]

    def __getitem__(self, name: str) -> TeacherOutputs:
        if name not in self.names:
            raise KeyError(name)
        return self.taught(self.i, name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.names))

    def __len__(self) -> int:
        return len(self.names)
