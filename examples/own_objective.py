# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A published distillation objective that ctkd does not have, with the attack that belongs to it: AdaAD.

Huang et al. 2023: the student learns the teacher's prediction at an attacked input, and the attack searches for the
input where the two disagree most. It asks the teacher at every step, which soft labels fixed at the clean input do
not. About 20 seconds on one core.

One plugin module may register several kinds. In a package of your own, the registration is one module and the two
classes are others; see "Write an objective" in the documentation.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ctkd import Paper, Registration, hookimpl, register
from ctkd.options import Count, NonNegative, Options, Positive, Unit
from ctkd.run import train

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Box, Enclosure, Kind, Lesson, Noise

CTKD_INTERFACE = 1
SOURCE = Paper(
    ("Huang, Bo", "Chen, Mingyang", "Wang, Yi", "Lu, Junda", "Cheng, Minhao", "Wang, Wei"),
    "Boosting Accuracy and Robustness of Student Models via Adaptive Adversarial Distillation",
    2023,
    "IEEE/CVF Conference on Computer Vision and Pattern Recognition",
)


@hookimpl
def ctkd_objectives() -> list[Registration]:
    summary = "the teacher's prediction at inputs where student and teacher disagree"
    return [Registration("adaad", "own_objective:AdaAD", summary, (SOURCE,))]


@hookimpl
def ctkd_attacks() -> list[Registration]:
    return [Registration("adaad", "own_objective:Disagreement", "searches where two networks disagree", (SOURCE,))]


class AdaADOptions(Options):
    """Which of the two inputs counts."""

    alpha: Unit = 1.0
    """Weight of the attacked input; the clean input has the rest."""


class AdaAD:
    """``alpha KL(p(x') || q(x')) + (1 - alpha) KL(p(x) || q(x))``, p the teacher, q the student, x' attacked."""

    Options = AdaADOptions
    attack: ClassVar[dict[str, Any]] = {"name": "adaad"}
    reads: frozenset[Kind] = frozenset({"point"})
    point = "adversarial"
    teachers = 1
    needs_features = False

    def __init__(self, options: AdaADOptions) -> None:
        self.options = options
        clean = frozenset({"clean"}) if options.alpha < 1 else frozenset[str]()
        self.teacher_inputs = frozenset({"adversarial"}) | clean
        self.student_points = clean

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        from ctkd.api import divergence_from

        alpha = self.options.alpha
        assert enclosure.logits is not None  # points have them
        attacked = lesson.record("attacked", divergence_from(lesson.teacher["adversarial"].logits, enclosure.logits))
        if alpha == 1:
            return attacked
        own = lesson.points["clean"].logits
        assert own is not None
        clean = lesson.record("clean", divergence_from(lesson.teacher["clean"].logits, own))
        return alpha * attacked + (1 - alpha) * clean


class DisagreementOptions(Options):
    """How hard it searches."""

    steps: Count = 5
    """Steps along the sign of the gradient."""
    step_size: Positive = 0.25
    """Relative to the box's half-width."""
    noise: NonNegative = 0.001
    """Standard deviation of the start around the clean input."""


class Disagreement:
    """Maximises ``KL(p(x') || q(x'))`` by its gradient through student and teacher."""

    Options = DisagreementOptions
    calls_teacher = True

    def __init__(self, options: DisagreementOptions) -> None:
        self.options = options

    def perturb(
        self,
        logits: Callable[[Tensor], Tensor],
        x: Tensor,
        labels: Tensor,
        box: Box,
        noise: Noise,
        reference: Tensor | None = None,
        *,
        teacher: Callable[[Tensor], Tensor],
    ) -> Tensor:
        import torch

        from ctkd.api import divergence_from

        step = self.options.step_size * (box.upper - box.lower) / 2
        point = box.clamp(x + self.options.noise * noise.normal(x))
        for _ in range(self.options.steps):
            with torch.enable_grad():
                point.requires_grad_()
                distance = divergence_from(teacher(point), logits(point)).sum()
                (gradient,) = torch.autograd.grad(distance, point)
            point = box.clamp(point.detach() + step * gradient.sign())
        return point


def main() -> None:
    register(sys.modules[__name__], "own_objective.py")
    settings = {
        "bound.name": "mtl-ibp",
        "distill.name": "adaad",
        "teacher.epochs": 10,
        "train.epochs": 10,
        "train.threads": 1,
    }
    with tempfile.TemporaryDirectory() as scratch:
        _, summary = train(settings=settings, out=Path(scratch) / "run")
    teacher = summary["teacher"]
    print(f"teacher: natural {teacher['natural_accuracy']:.1%}, adversarial {teacher['adversarial_accuracy']:.1%}")
    print(
        f"student: natural {summary['natural_accuracy']:.1%}, adversarial {summary['adversarial_accuracy']:.1%}, "
        f"certified {summary['certified_accuracy']:.1%}"
    )


if __name__ == "__main__":
    main()
