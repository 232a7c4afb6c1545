# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Several teachers as one.

Ensembles are among the teachers of Maroto et al. 2022, arXiv 2203.07159.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ctkd.errors import BadInput, RunFailed, nearest
from ctkd.options import Options, validate
from ctkd.plugins import create, options_class, registry

if TYPE_CHECKING:
    from ctkd.api import TeacherContext, TeacherSource
    from ctkd.teaching import Teacher

Table = dict[str, Any]
NO_MEMBERS = ("none", "ensemble")
"""Sources that give no single teacher."""


def _complete(tables: tuple[Table, ...]) -> tuple[Table, ...]:
    """Each member's table with all options of its source, so that a stored configuration says what was trained."""
    complete: list[Table] = []
    for i, table in enumerate(tables, start=1):
        member = _member(table, f"member {i}")
        # Equal ones without a seed get seeds of their own.
        if member in complete and member.get("seed") != "none":
            raise ValueError(f"member {i} is the same as an earlier one ({member['name']} with equal options)")
        complete.append(member)
    return tuple(complete)


def _member(table: Table, who: str) -> Table:
    values = dict(table)
    name, accepted = values.pop("name", None), set(registry().names("teacher")) - set(NO_MEMBERS)
    if name not in accepted:
        hint = nearest(str(name or ""), accepted)
        raise ValueError(f"{who} has name = {name!r}, which must be a source of one teacher: {hint}")
    problems: list[str] = []
    options = validate(options_class(registry().find("teacher", name)), values, name, problems)
    if options is None:
        raise ValueError(f"{who}: {'; '.join(problems)}")
    plain = options.model_dump(mode="json")
    return {"name": name, **{key: "none" if value is None else value for key, value in plain.items()}}


class EnsembleTeacherOptions(Options):
    """The members, and what is averaged."""

    members: Annotated[tuple[Table, ...], Field(min_length=2, max_length=100), AfterValidator(_complete)]
    """Teacher tables, ``[{name = "pgd"}, {name = "file", path = "runs/a"}]`` or ``[[teacher.members]]`` in a file. Of
    equal ones that leave ``seed`` out, the first has the run's seed, and each further one the next."""
    average: Literal["probabilities", "logits"] = "probabilities"
    """The mean of probabilities is returned as its logarithm."""


class EnsembleTeacher:
    """Logits only: the members' features have no common meaning."""

    Options = EnsembleTeacherOptions
    features = False

    def __init__(self, options: EnsembleTeacherOptions) -> None:
        self.options = options

    @property
    def trains(self) -> bool:
        return any(getattr(source, "trains", True) for source in self._sources(0))

    def obtain(self, context: TeacherContext) -> Teacher:
        from ctkd.teaching import Teacher

        sources = self._sources(context.seed)
        found: dict[int, Teacher] = {}
        # What needs no training comes first, so that what is wrong with it is refused before hours of work.
        for i in sorted(range(len(sources)), key=lambda i: bool(getattr(sources[i], "trains", True))):
            found[i] = _obtain(sources[i], i + 1, self.options.members[i]["name"], context)
        single = [found[i] for i in range(len(sources))]
        return Teacher(
            tuple(teacher.members[0] for teacher in single),
            self.options.average,
            tuple(teacher.probabilities[0] for teacher in single),
        )

    def _sources(self, seed: int) -> list[TeacherSource]:
        sources = []
        for i, table in enumerate(self.options.members):
            values = dict(table)
            entry = registry().find("teacher", values.pop("name"))
            if values.get("seed") == "none":
                values["seed"] = seed + self.options.members[:i].count(table)
            sources.append(create(entry, options_class(entry)(**values)))
        return sources


def _obtain(source: TeacherSource, place: int, name: str, context: TeacherContext) -> Teacher:
    """One member, checked. Raises: BadInput or RunFailed that names it."""
    from ctkd.faculty import check_fits, check_logits
    from ctkd.propagate import Network
    from ctkd.teaching import Teacher

    try:
        answer = source.obtain(context)
        teacher = Teacher((answer,)) if isinstance(answer, Network) else answer
        if not isinstance(teacher, Teacher) or len(teacher.members) != 1:
            raise RunFailed(f"member {place} of the ensemble, teacher {name!r}, is not one network")
        check_fits(teacher, name, context.data)
        check_logits(teacher, name, context.data.validation, f"{context.role}.members")
    except BadInput as error:
        raise BadInput(*(f"member {place} of the ensemble: {message}" for message in error.messages)) from None
    return teacher
