# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Which bound methods, objectives, attacks and teachers can work together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ctkd.attribution import label
from ctkd.errors import BadInput, RunFailed
from ctkd.hookspecs import Registration

if TYPE_CHECKING:
    from ctkd.config import RunConfig


INPUTS = frozenset({"clean", "adversarial"})
KINDS = frozenset({"point", "box", "mixed"})
DECLARED: dict[str, dict[str, type | frozenset[str]]] = {
    "bound": {"evaluates": KINDS, "sound": bool},
    "distill": {
        "reads": KINDS,
        "teachers": int,
        "teacher_inputs": INPUTS,
        "student_points": INPUTS,
        "needs_features": bool,
    },
}
"""What bound methods and objectives must declare: a type, or a set of some of these names."""
METHODS = {"bound": ("needs", "combine"), "distill": ("loss",)}
"""What they must be able to do."""


def check_declared(entry: Registration, made: object) -> None:
    """Raises: RunFailed naming the plugin if it does not declare what ``ctkd.api`` asks for."""
    for name, wanted in DECLARED[entry.kind].items():
        if not hasattr(made, name):
            raise RunFailed(f"{label(entry)}: the attribute {name} is missing; ctkd.api says what it must be")
        found = getattr(made, name)
        if isinstance(wanted, frozenset):
            good = isinstance(found, frozenset | set) and found <= wanted
            accepted = f"a frozenset with some of {', '.join(sorted(wanted))}"
        else:
            good, accepted = type(found) is wanted, f"of type {wanted.__name__}"
        if not good:
            raise RunFailed(f"{label(entry)}: {name} is {found!r}; it must be {accepted}")
    for name in METHODS[entry.kind]:
        if not callable(getattr(made, name, None)):
            raise RunFailed(f"{label(entry)}: the method {name} is missing; ctkd.api says what it must do")


def check_pair(config: RunConfig) -> None:
    """Raises: BadInput if bound method, objective, attack and teachers cannot work together, with the reason."""
    method, objective = config.bound.create(), config.distill.create()
    check_declared(config.bound.entry, method)
    check_declared(config.distill.entry, objective)
    count = len(config.teachers) if config.taught else 0
    if not config.taught and len(config.teachers) > 1:
        raise BadInput("teacher.name=none stands beside another teacher; leave it out")
    if config.distill.name != "none" and not count:
        raise BadInput(
            f"distill.name={config.distill.name} needs a teacher, and teacher.name=none; "
            "choose a teacher such as --teacher pgd, or --distill none"
        )
    attack = config.attack.create()
    if (getattr(attack, "reference", None) == "teacher" or getattr(attack, "calls_teacher", False)) and not count:
        objective_option = getattr(config.attack.options, "objective", None)
        which = f"attack.objective={objective_option}" if objective_option else f"attack.name={config.attack.name}"
        raise BadInput(
            f"{which} needs the teacher's prediction, and teacher.name=none; choose a teacher such as --teacher pgd"
        )
    if config.train.eps == 0 and getattr(method, "needs_radius", False):
        raise BadInput(
            f"bound.name={config.bound.name} acts where the radius is above 0, and train.eps=0 is natural training "
            "throughout; set a radius, such as --eps 0.1"
        )
    if config.distill.name == "none":
        return
    if config.train.eps == 0:
        raise BadInput(
            f"distill.name={config.distill.name} acts where the radius is above 0, and train.eps=0 is natural training "
            "throughout; set a radius, or --distill none"
        )
    if count != objective.teachers:
        more = "repeat --teacher, such as --teacher pgd --teacher natural"
        fewer = "give one; --teacher ensemble makes one of several"
        raise BadInput(
            f"distill.name={config.distill.name} learns from {objective.teachers} "
            f"teacher{'s' if objective.teachers != 1 else ''}, found {count}: "
            f"{more if count < objective.teachers else fewer}"
        )
    tables = [choice.table() for choice in config.teachers]
    for i, table in enumerate(tables):
        if table in tables[:i]:
            raise BadInput(
                f"teacher.{i + 1} is the same as an earlier teacher ({table['name']} with equal options), so it would "
                f"teach nothing new; set another teacher.{i + 1}.name, or options such as teacher.{i + 1}.seed"
            )
    first = config.teachers[0]
    if objective.needs_features and not getattr(first.create(), "features", True):
        raise BadInput(
            f"distill.name={config.distill.name} reads the teacher's features, and teacher {first.name!r} gives "
            "logits only; choose an objective on logits, such as --distill logits, or another teacher"
        )
    if not objective.reads & method.evaluates:
        raise BadInput(
            f"distill.name={config.distill.name} reads {_kinds(objective.reads)} enclosures, but "
            f"bound.name={config.bound.name} takes its loss on {_kinds(method.evaluates)} ones only, so it would do "
            "nothing; mtl-ibp evaluates points and boxes, and --distill features reads every kind"
        )

    if getattr(objective, "point", "any") != "any" and getattr(method, "point", "adversarial") != objective.point:
        raise BadInput(
            f"distill.name={config.distill.name} is defined at the adversarial point, and bound.name="
            f"{config.bound.name} takes its loss at the clean one; choose --distill logits, or a bound method such as "
            "adversarial or mtl-ibp"
        )
    if getattr(objective, "needs_functionals", False) and getattr(method, "own_loss", False):
        raise BadInput(
            f"distill.name={config.distill.name} replaces the loss of an enclosure's margins, and bound.name="
            f"{config.bound.name} as set has a loss of its own there, which would be lost; choose --distill features, "
            "or another bound method, such as ibp"
        )


def _kinds(kinds: Iterable[str]) -> str:
    return " and ".join(sorted(kinds))
