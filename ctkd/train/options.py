# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Options of the training loop. Light: no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ctkd.options import Count, Index, NonNegative, Options, Positive, Radius, Unit

Factor = Annotated[Positive, Field(le=10)]


class TrainOptions(Options):
    """The schedule and everything around the loss. Epochs may be fractions of an epoch where they name a moment."""

    eps: Radius = 0.1
    """Target radius of the certificate, L-infinity, pixel units."""
    train_eps_factor: Factor = 1.0
    """Training boxes end at eps times this."""
    attack_eps_factor: Factor = 1.0
    """The attack's box is this times the step's training radius."""
    epochs: Count = 20
    """Length of the training."""
    warmup: NonNegative = 1.0
    """Epochs of natural training before the ramp."""
    ramp: NonNegative = 10.0
    """Epochs over which the radius grows from 0 to its target, smoothly (Gowal et al. 2018)."""
    batch_size: Count = 256
    """Images per step; an incomplete last batch is left out."""
    lr: Positive = 5e-4
    """Adam's learning rate."""
    milestones: tuple[NonNegative, ...] = ()
    """Epochs after which the learning rate is multiplied by ``lr_decay``."""
    lr_decay: Unit = 0.2
    """Factor at each milestone."""
    clip: Positive = 10.0
    """Largest global L2 norm of the gradient."""
    l1: NonNegative = 0.0
    """Weight of the sum of absolute weights of all convolutions and fully connected layers."""
    shi_weight: NonNegative = 0.5
    """Weight of both regularisers of Shi et al. 2021, faded out with the ramp."""
    init: Literal["shi", "default"] = "shi"
    """``shi``: Normal(0, sqrt(2 pi) / fan_in), keeps interval widths; ``default``: PyTorch's."""
    kappa_start: Unit = 0.0
    """Weight of the clean loss where the ramp begins."""
    kappa_end: Unit = 0.0
    """Weight of the clean loss at the end of the ramp and after."""
    statistics: Literal["clean", "last-pass"] = "clean"
    """Which batch-norm statistics bounds use: the clean batch's, or the adversarial batch's (expressive-losses)."""
    population_statistics: bool = False
    """After training, replace running statistics by the mean over the whole training set (CTBench)."""
    average_from: NonNegative | None = None
    """Average the weights of all steps from this epoch on, and use the average."""
    seed: Index = 0
    """Of everything random: initialisation, order, attacks."""
    threads: Annotated[Count, Field(le=1024)] | None = None
    """CPU threads; None leaves PyTorch's choice. Recorded, since results are bit-identical per thread count only."""
    device: str = "cpu"
    """A torch device."""
    checkpoint_seconds: Positive = 60.0
    """A checkpoint is written at least this often, and after each epoch."""
    final: bool = False
    """Train on training and validation data together. Validation figures are then optimistic, and marked so."""

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.warmup + self.ramp > self.epochs:
            raise ValueError(
                f"warmup + ramp = {self.warmup + self.ramp:g} epochs do not fit into epochs = {self.epochs}"
            )
        return self
