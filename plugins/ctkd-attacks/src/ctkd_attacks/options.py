# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Options of the attacks. Light: no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ctkd.options import Count, Options

Part = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]

FEWEST_CLASSES: dict[Part, int] = {"apgd-dlr": 3, "apgd-t": 4}
"""The difference-of-logits-ratio loss divides by a difference of the first and third logit, or third and fourth."""


def standard(classes: int) -> tuple[Part, ...]:
    """The paper's four parts. Below 4 classes its targeted loss is undefined: the untargeted one or none stands in."""
    ratio: Part = "apgd-t" if classes >= FEWEST_CLASSES["apgd-t"] else "apgd-dlr"
    parts: tuple[Part, ...] = ("apgd-ce", ratio, "fab-t", "square")
    return tuple(part for part in parts if classes >= FEWEST_CLASSES.get(part, 2))


class AutoAttackOptions(Options):
    """The standard version of AutoAttack; it has nothing to tune. Other values are weaker, or for experiments."""

    parts: Annotated[tuple[Part, ...], Field(min_length=1)] | None = None
    """In this order, each on the samples that are left. ``none`` is the standard version: apgd-ce, apgd-t, fab-t,
    square."""
    targets: Count = 9
    """Classes that apgd-t and fab-t aim at, those of largest logits first; all others where there are fewer."""
    steps: Count = 100
    """Of each run of APGD and FAB."""
    queries: Count = 5000
    """Of Square."""


class APGDOptions(Options):
    """Auto-PGD. The evaluation in the paper takes 100 steps; training cannot afford as many."""

    loss: Literal["cross-entropy", "dlr"] = "cross-entropy"
    """What is maximised. ``dlr``, the difference of logits ratio, does not saturate, and needs 3 classes."""
    steps: Count = 10
    """Gradient steps of each restart."""
    restarts: Count = 1
    """Random starting points."""
