# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What a network can output over one set of inputs, and the loss of it. Part of ``ctkd.api``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ctkd.boxes import Box

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["point", "box", "mixed"]
"""What an enclosure speaks about: one input, all inputs of a box, or (combined) neither."""


@dataclass(frozen=True, eq=False)
class Enclosure:
    """What the student can output over one set of inputs.

    Attributes:
        inputs: the set; lower equals upper for a point.
        centre, radius: (batch, feature_dim), the student's features (input of the last affine layer) as an
            interval; the radius is zero for a point. None where the student has no last affine layer.
        margins: (batch, classes), a lower estimate of ``logit[label] - logit[j]`` over the set, exact for a
            point; 0 at j = label. None for methods that only bound the loss.
        logits: (batch, classes), for points only.
        loss: (batch,), a method's own robust loss on the set, where it is not the cross entropy of the margins.
        lower: (batch, specs, classes) -> (batch, specs): lower estimates, over the set, of the linear functionals
            of the logits that the rows are; the margins are those of the rows ``e_label - e_j``. Exact for a point.
        upper_margins: (batch, classes), an upper estimate of what ``margins`` estimates from below: the same numbers
            for a point; 0 at j = label. None where nobody gave one.
        statistics: which batch-norm statistics it was computed with.
        kind: ``mixed`` once enclosures were combined: then it holds for no set, it is an estimate.
    """

    inputs: Box
    kind: Kind
    centre: Tensor | None
    radius: Tensor | None
    margins: Tensor | None
    logits: Tensor | None = None
    loss: Tensor | None = None
    lower: Callable[[Tensor], Tensor] | None = None
    upper_margins: Tensor | None = None
    statistics: Literal["batch", "running"] = "batch"

    def mix(self, other: Enclosure, weight: float) -> Enclosure:
        """``(1 - weight) self + weight other``: centre, radius and margins alike, and losses where both have their own.

        Raises: ValueError if one has a loss of its own and the other has not.
        """
        if (self.loss is None) != (other.loss is None):
            raise ValueError("an enclosure with a loss of its own cannot be mixed with one that has none; mix losses")

        def blend(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            if weight in (0, 1):  # so that no infinite bound of weight 0 becomes NaN
                return b if weight else a
            return None if a is None or b is None else (1 - weight) * a + weight * b

        def lower(rows: Tensor) -> Tensor:
            assert self.lower is not None
            assert other.lower is not None
            blended = blend(None if weight == 1 else self.lower(rows), None if weight == 0 else other.lower(rows))
            assert blended is not None
            return blended

        return Enclosure(
            inputs=other.inputs,
            kind="mixed",
            centre=blend(self.centre, other.centre),
            radius=blend(self.radius, other.radius),
            margins=blend(self.margins, other.margins),
            loss=blend(self.loss, other.loss),
            lower=lower if self.lower is not None and other.lower is not None else None,
            upper_margins=blend(self.upper_margins, other.upper_margins),
            statistics=other.statistics,
        )

    def with_margins(self, margins: Tensor, lower: Callable[[Tensor], Tensor] | None = None) -> Enclosure:
        """The same set with other lower estimates of the margins, and of other functionals if ``lower`` is given.

        The upper estimates stay: what they say of the set is still so.
        """
        return replace(self, margins=margins, lower=lower or self.lower)

    def estimated(self, loss: Tensor) -> Enclosure:
        """The same features with a robust loss of a method's own, (batch,): an estimate, so it holds for no set."""
        return replace(self, kind="mixed", loss=loss, margins=None, upper_margins=None)

    def robust_loss(self) -> Tensor:
        """(batch,): the enclosure's own loss where it has one, else ``cross_entropy(margins)``."""
        if self.loss is not None:
            return self.loss
        assert self.margins is not None
        return cross_entropy(self.margins)


def cross_entropy(margins: Tensor) -> Tensor:
    """``log(1 + sum over j != label of exp(-margin_j))``, (batch, classes) -> (batch,).

    The margin at the label is 0 and supplies the 1. For a point this is the cross entropy; for lower bounds of
    the margins it bounds the cross entropy over the whole set from above.
    """
    return (-margins).logsumexp(1)
