# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Logit distillation over a whole enclosure: the worst-case divergence from the teacher, bounded from above.

Not published: AD-CERT's term (Melis et al. 2026, arXiv 2606.31653) in the worst case of Gowal et al. 2018 (arXiv
1810.12715).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ctkd.errors import RunFailed
from ctkd.options import Options, Positive, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Enclosure, Kind, Lesson


class LogitsBoxOptions(Options):
    """How the teacher's prediction replaces the label."""

    weight: Unit = 1.0
    """1 replaces the robust loss altogether; 0 leaves it alone."""
    temperature: Positive = 1.0
    """Softens both predictions; the term is multiplied by its square."""
    teacher_input: Literal["clean", "adversarial"] = "clean"
    """Where the teacher predicts: a constant over the set in either case."""


class LogitsBox:
    """``max over the set of KL(p(x) || q(x'))``, bounded from above, in the place of the robust loss on any enclosure.

    With f the student's logits and p the teacher's probabilities,

        KL = -H(p) + log sum_j exp(-(p - e_j) . f(x'))  <=  -H(p) + log sum_j exp(-lower_j)

    where lower_j is the enclosure's lower estimate of the functional p - e_j: one row a class, merged into the last
    layer as margins are. It is as sound as those estimates: a guarantee on the sound boxes of ``ibp`` and
    ``crown-ibp``, exact on a point (where it is ``logits``), an estimate on a combination. With a one-hot teacher the
    rows are the margins', and the term is the robust loss.

    Methods whose enclosures carry a loss of their own (loss fusion, TAPS) are refused: it would be thrown away.

    Raises: RunFailed if the bound method gives no estimates of functionals.
    """

    Options = LogitsBoxOptions
    reads: frozenset[Kind] = frozenset({"point", "box", "mixed"})
    teachers = 1
    student_points: frozenset[str] = frozenset()
    needs_features = False
    needs_functionals = True

    def __init__(self, options: LogitsBoxOptions) -> None:
        self.options = options
        self.teacher_inputs = frozenset({options.teacher_input})

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        weight, teacher = self.options.weight, lesson.teacher[self.options.teacher_input].logits
        worst = lesson.record("logits-box", self.bound(enclosure, teacher))
        return worst if weight == 1 else (1 - weight) * lesson.robust + weight * worst

    def bound(self, enclosure: Enclosure, teacher: Tensor) -> Tensor:
        """An upper bound of the divergence over the set, (batch,), from the teacher's logits (batch, classes)."""
        import torch

        if enclosure.lower is None:
            raise RunFailed(
                "distill.name=logits-box needs bounds of linear functionals (Enclosure.lower), and the bound method "
                "gives none; use --distill logits or features with it"
            )
        temperature = self.options.temperature
        logarithms = (teacher / temperature).log_softmax(1)
        p = logarithms.exp()
        rows = p.unsqueeze(1) - torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
        negative_entropy = (p * logarithms).sum(1)
        return temperature**2 * (negative_entropy + (-enclosure.lower(rows) / temperature).logsumexp(1))
