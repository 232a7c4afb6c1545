# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Teachers trained on the spot: adversarially (Madry et al. 2018, arXiv 1706.06083) or on clean images.

The source of CC-Dist does not state its teacher's schedule in public text; the defaults are this project's choice:
the student's architecture, a multi-step attack, the certificate's radius.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.options import Count, Index, NonNegative, Options, Positive, Unit
from ctkd.train.options import Factor, TrainOptions

if TYPE_CHECKING:
    from ctkd.api import TeacherContext
    from ctkd.propagate import Network


class TrainedTeacherOptions(Options):
    """Adam, a learning rate that drops at milestones, no natural warm-up."""

    epochs: Count = 15
    """Length of the teacher's training."""
    lr: Positive = 1e-3
    """Adam's learning rate at the start."""
    milestones: tuple[Unit, ...] = (0.5, 0.75)
    """Fractions of the epochs after which the learning rate drops."""
    lr_decay: Unit = 0.2
    """Factor at each milestone."""
    batch_size: Count = 256
    """Images per step."""
    l1: NonNegative = 0.0
    """Weight of the sum of absolute weights."""
    seed: Index | None = None
    """None: the run's seed."""


class PGDTeacherOptions(TrainedTeacherOptions):
    """The attack in training."""

    eps_factor: Factor = 1.0
    """The teacher's radius is eps times this."""
    ramp: NonNegative = 2.0
    """Epochs over which its radius grows to the full one."""
    steps: Count = 5
    """PGD steps per batch."""
    step_size: Positive = 0.5
    """Relative to the box's half-width."""
    restarts: Count = 1
    """Random starting points."""


class NaturalTeacher:
    """Trained without perturbation. Shows what adversarial training of the teacher is worth."""

    Options = TrainedTeacherOptions

    def __init__(self, options: TrainedTeacherOptions) -> None:
        self.options = options

    def obtain(self, context: TeacherContext) -> Network:
        return context.fit(_schedule(self.options, context, eps=0.0, ramp=0.0), {"name": "pgd"}, "adversarial")


class PGDTeacher:
    """Trained on multi-step PGD points."""

    Options = PGDTeacherOptions

    def __init__(self, options: PGDTeacherOptions) -> None:
        self.options = options

    def obtain(self, context: TeacherContext) -> Network:
        options = self.options
        train = _schedule(options, context, eps=min(1.0, context.eps * options.eps_factor), ramp=options.ramp)
        attack = {"name": "pgd", "steps": options.steps, "step_size": options.step_size, "restarts": options.restarts}
        return context.fit(train, attack, "adversarial")


def _schedule(options: TrainedTeacherOptions, context: TeacherContext, eps: float, ramp: float) -> TrainOptions:
    return TrainOptions(
        eps=eps,
        epochs=options.epochs,
        warmup=0.0,
        ramp=min(ramp, options.epochs),
        batch_size=options.batch_size,
        lr=options.lr,
        milestones=tuple(part * options.epochs for part in options.milestones),
        lr_decay=options.lr_decay,
        l1=options.l1,
        shi_weight=0.0,
        init="default",
        seed=context.seed if options.seed is None else options.seed,
        threads=context.threads,
        device=context.device,
    )
