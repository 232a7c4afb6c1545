# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What the teachers that are trained on the spot share: options, schedule, attack.

The source of CC-Dist does not state its teacher's schedule in public text; the defaults are this project's choice:
the student's architecture, a multi-step attack, the certificate's radius.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, model_validator

from ctkd.errors import nearest
from ctkd.options import Count, Index, NonNegative, Options, Positive, Unit
from ctkd.plugins import registry
from ctkd.train.options import (
    Factor,
    LRRise,
    LRSchedule,
    Momentum,
    OptimizerName,
    TrainOptions,
    check_optimizer,
    check_rates,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ctkd.api import TeacherContext
    from ctkd.propagate import Network


def _known_model(name: str) -> str:
    if name not in registry().names("model"):
        raise ValueError(f"not known: {nearest(name, registry().names('model'))}")
    return name


ModelName = Annotated[str, AfterValidator(_known_model)]
"""A registered architecture; it is built with its default options."""


class TrainedOptions(Options):
    """By default Adam and a learning rate that drops at milestones; no natural warm-up."""

    model: ModelName | None = None
    """Another architecture than the student's, with its default options; None is the student's with the student's."""
    epochs: Count = 15
    """Length of the teacher's training."""
    optimizer: OptimizerName = "adam"
    """``adam``, ``adamw`` or ``sgd``, as ``train.optimizer``."""
    momentum: Momentum = 0.9
    """Of ``sgd``."""
    nesterov: bool = False
    """Nesterov's momentum, of ``sgd``."""
    weight_decay: NonNegative = 0.0
    """L2 penalty on all parameters; with ``adamw`` decoupled from the gradient."""
    lr: Positive = 1e-3
    """Learning rate at the start; the highest one with ``cyclic`` and ``one-cycle``."""
    lr_schedule: LRSchedule = "milestones"
    """``milestones``, ``cyclic`` or ``one-cycle``, as ``train.lr_schedule``."""
    milestones: tuple[Unit, ...] = (0.5, 0.75)
    """Fractions of the epochs after which the learning rate drops, with ``lr_schedule = milestones``."""
    lr_decay: Unit = 0.2
    """Factor at each milestone."""
    lr_low: Unit = 0.0
    """Where ``cyclic`` and ``one-cycle`` begin, as a part of ``lr``."""
    lr_rise: LRRise = 0.5
    """The part of a cycle in which the rate rises."""
    lr_cycles: Count = 1
    """Cycles of ``cyclic`` in the whole training."""
    batch_size: Count = 256
    """Images per step."""
    l1: NonNegative = 0.0
    """Weight of the sum of absolute weights."""
    precision: Literal["fp32", "mixed"] = "fp32"
    """``mixed``: the attack runs in bfloat16."""
    seed: Index | None = None
    """None: the run's seed."""
    keep: str = "last"
    """Which epoch's weights become the teacher; each source says what it compares."""
    patience: Count | None = None
    """Stop after this many epochs without a better one; needs ``keep``."""

    @model_validator(mode="after")
    def _optimisation_fits(self) -> Self:
        check_optimizer(self.optimizer, self.momentum, self.nesterov)
        check_rates(self.lr_schedule, (), self.lr_cycles)
        return self

    @model_validator(mode="after")
    def _patience_knows_better(self) -> Self:
        if self.patience is not None and self.keep == "last":
            best = get_args(type(self).model_fields["keep"].annotation)[-1]
            raise ValueError(f"patience = {self.patience} needs keep = {best}")
        return self


class AttackedOptions(TrainedOptions):
    """The attack in training, and early stopping against robust overfitting (Rice et al. 2020, arXiv 2002.11569)."""

    eps_factor: Factor = 1.0
    """The teacher's radius is eps times this."""
    attack_eps_factor: Factor = 1.0
    """The attack's box in training is this times the teacher's radius, at which epochs are compared."""
    ramp: NonNegative = 2.0
    """Epochs over which its radius grows to the full one."""
    steps: Count = 5
    """PGD steps per batch."""
    step_size: Positive = 0.5
    """Relative to the box's half-width."""
    restarts: Count = 1
    """Random starting points."""
    decay: Unit = 1.0
    """The step size is multiplied by this at each part of ``decay_at``."""
    decay_at: tuple[Unit, ...] = ()
    """Parts of the steps after which the step size decays, such as 0.7."""
    warm_start: bool = False
    """Attacks begin where the image's last one ended, as ``attack.warm_start``; images must not be augmented."""
    edac: NonNegative = 0.0
    """Weight of the adversarial certainty that an extra step lowers, as ``train.edac``; 0 is off."""
    objective: Literal["cross-entropy", "margin", "kl-student"] = "cross-entropy"
    """What the attack maximises, as in ``pgd`` attacks; there is no teacher yet to move away from."""
    keep: Literal["last", "best-adversarial"] = "last"
    """``best-adversarial``: the weights of the epoch with the best adversarial accuracy on validation images."""

    @model_validator(mode="after")
    def _epochs_can_be_compared(self) -> Self:
        if self.keep != "last" and self.ramp >= self.epochs:
            raise ValueError(
                f"keep = {self.keep} compares epochs at the full radius, and ramp = {self.ramp:g} leaves none of "
                f"epochs = {self.epochs}"
            )
        return self


def schedule(options: TrainedOptions, context: TeacherContext, **more: Any) -> TrainOptions:
    """The options of the training loop; without ``eps`` among ``more`` a natural training."""
    return TrainOptions(
        **{"eps": 0.0, "ramp": 0.0, **more},
        epochs=options.epochs,
        patience=options.patience,
        warmup=0.0,
        batch_size=options.batch_size,
        optimizer=options.optimizer,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
        lr=options.lr,
        lr_schedule=options.lr_schedule,
        milestones=tuple(part * options.epochs for part in options.milestones if options.lr_schedule == "milestones"),
        lr_decay=options.lr_decay,
        lr_low=options.lr_low,
        lr_rise=options.lr_rise,
        lr_cycles=options.lr_cycles,
        l1=options.l1,
        shi_weight=0.0,
        init="default",
        seed=context.seed if options.seed is None else options.seed,
        precision=options.precision,
        threads=context.threads,
        device=context.device,
    )


def fit_attacked(options: AttackedOptions, context: TeacherContext, bound: Mapping[str, Any]) -> Network:
    """Train on PGD points, combined by the bound method of the table ``bound``."""
    train = schedule(
        options,
        context,
        eps=min(1.0, context.eps * options.eps_factor),
        attack_eps_factor=options.attack_eps_factor,
        edac=options.edac,
        ramp=min(options.ramp, options.epochs),
        keep=options.keep,
    )
    attack = {
        "name": "pgd",
        "objective": options.objective,
        "steps": options.steps,
        "step_size": options.step_size,
        "restarts": options.restarts,
        "decay": options.decay,
        "decay_at": list(options.decay_at),
        "warm_start": options.warm_start,
    }
    return context.fit(train, attack, bound, options.model)
