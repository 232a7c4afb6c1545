# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""TRADES (Zhang et al. 2019, arXiv 1901.08573): clean loss, and the divergence of the attacked prediction from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ctkd.options import NonNegative, Options

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Kind, Needs, Schedule, Step


class TRADESOptions(Options):
    """The trade-off."""

    beta: NonNegative = 6.0
    """Weight of the divergence (1/λ of the source; 6 in common use)."""


class TRADES:
    """``CE(clean) + beta KL(p(clean) || p(adversarial))``, no bounds at all. An estimate; mainly trains teachers.

    The attack maximises the same divergence, with the prediction at the clean input fixed. In the loss the gradient
    flows through both predictions, as in the published code.

    Deviations: the attack starts from a uniform point of the box where published code starts near the image. The clean
    input takes the role of the point that objectives act on.
    """

    Options = TRADESOptions
    evaluates: frozenset[Kind] = frozenset({"point"})
    sound = False
    point: Literal["adversarial", "clean"] = "clean"
    attack: ClassVar[Mapping[str, Any]] = {"objective": "kl-student"}

    def __init__(self, options: TRADESOptions) -> None:
        self.options = options

    def needs(self, schedule: Schedule) -> Needs:
        from ctkd.api import Needs

        return Needs(points=frozenset({"clean", "adversarial"}))

    def combine(self, step: Step) -> Tensor:
        from ctkd.divergence import divergence_from

        clean, attacked = step["clean"], step["adversarial"]
        assert clean.logits is not None
        assert attacked.logits is not None
        divergence = step.record("trades/divergence", divergence_from(clean.logits, attacked.logits))
        return step.loss(clean) + self.options.beta * divergence
