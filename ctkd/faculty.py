# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The teachers of a run: checked, evaluated, hashed, recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctkd.accuracy import adversarial_accuracy, natural_accuracy
from ctkd.api import Attack, Data, Split
from ctkd.errors import BadInput
from ctkd.storage import read_json, write_json
from ctkd.teaching import Teacher

CHANCE_SIGMAS = 3.0
"""A teacher within this many standard errors of guessing is refused."""
SUM_TOLERANCE = 1e-4
"""Outputs in [0, 1] whose rows sum to 1 within this are taken for probabilities."""


def load_recorded(folder: Path, input_shape: tuple[int, ...]) -> tuple[Teacher, dict[str, Any]] | None:
    """A teacher and its figures as ``record`` left them, or None if it did not.

    Raises: BadInput if the record, or what it names, is damaged.
    """
    path = folder / "teacher.json"
    if not path.exists():
        return None
    facts = read_json(path)
    try:
        stored, expected = facts["stored"], facts["sha256"]
        teacher = Teacher.load(folder, stored, input_shape)
    except (KeyError, TypeError) as error:
        raise BadInput(f"{path} is damaged, or was written by an older ctkd: {error} is missing") from None
    if teacher.sha256() != expected:
        raise BadInput(f"{path}: the teacher's files are not those that were recorded; they are damaged")
    return teacher, {key: value for key, value in facts.items() if key != "stored"}


def record(teacher: Teacher, facts: dict[str, Any], folder: Path) -> None:
    """Store weights first, figures last: the record says that both are whole."""
    folder.mkdir(exist_ok=True)
    stored = teacher.save(folder)
    write_json(folder / "teacher.json", {**facts, "stored": stored})


def check_fits(teacher: Teacher, name: str, data: Data) -> None:
    """Raises: BadInput if a teacher is for other inputs or classes than the data set's."""
    for member in teacher.members:
        if member.input_shape != data.input_shape or member.classes != data.classes:
            raise BadInput(
                f"teacher {name!r} takes inputs of shape {member.input_shape} and has {member.classes} classes; "
                f"data set {data.name!r} has {data.input_shape} and {data.classes}"
            )


@torch.no_grad()
def check_logits(teacher: Teacher, name: str, split: Split, role: str = "teacher") -> None:
    """Raises: BadInput if the teacher's outputs are not finite, or are probabilities where logits are expected.

    ``role``: the table of the configuration that the teacher comes from, such as ``teacher.2``.
    """
    x = split.images[:256]
    for member, flag in zip(teacher.members, teacher.probabilities, strict=True):
        outputs = member(x)
        if not bool(outputs.isfinite().all()):
            raise BadInput(f"teacher {name!r} returns numbers that are not finite on validation images")
        looks = bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() < SUM_TOLERANCE).all())
        if looks and not flag:
            raise BadInput(
                f"teacher {name!r} returns probabilities (rows in [0, 1] that sum to 1) in place of logits; set {role}."
                "outputs=probabilities where the teacher source has it, or take the softmax out of the model"
            )
        if flag and not looks:
            raise BadInput(
                f"teacher {name!r}: {role}.outputs=probabilities, but the rows that it returns are not in [0, 1] or "
                f"do not sum to 1; set {role}.outputs=logits"
            )


def check_chance(teacher: Teacher, name: str, data: Data) -> None:
    """Raises: BadInput if the teacher does no better than guessing on the validation split."""
    seen = natural_accuracy(teacher, data.validation)
    chance = 1 / data.classes
    if seen <= chance + CHANCE_SIGMAS * (chance * (1 - chance) / len(data.validation)) ** 0.5:
        raise BadInput(
            f"teacher {name!r} is at chance level: {seen:.1%} of the validation split is right "
            f"(guessing gives {chance:.1%}); it may expect other inputs than pixels in [0, 1]"
        )


def evaluate(
    teacher: Teacher,
    name: str,
    data: Data,
    test: Split,
    eps: float,
    attack: Attack,
    seed: int,
    between: Callable[[], None],
    device: str = "cpu",
) -> dict[str, Any]:
    """Natural and adversarial accuracy on ``test`` (the latter null without gradients), and the fingerprint.

    Batch by batch, the images go to ``device`` and the logits come back.
    """
    moved = teacher.to(device)

    def function(x: Tensor) -> Tensor:
        return moved(x.to(device)).to(x.device)

    robust = (
        adversarial_accuracy(function, test, eps, attack, seed, between=between) if teacher.differentiable else None
    )
    return {
        "name": name,
        "natural_accuracy": natural_accuracy(function, test),
        "adversarial_accuracy": robust,
        "validation_natural_accuracy": natural_accuracy(function, data.validation),
        "sha256": teacher.sha256(),
    }
