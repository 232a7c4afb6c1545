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
    keep: Literal["last", "best-adversarial", "best-interval"] = "last"
    """Which epoch's weights become the network: the last one's, or those of the epoch at the full radius with the best
    adversarial accuracy (10 steps of PGD, 1,000 images) or interval-certified accuracy on the validation split."""
    patience: Count | None = None
    """Stop after this many epochs without a better one; needs ``keep`` to say what better means."""
    precision: Literal["fp32", "mixed", "bf16"] = "fp32"
    """``mixed``: the attack runs in bfloat16, everything that it is for in float32. ``bf16``: convolutions and hidden
    fully connected layers of the whole step do; weights, batch-norm statistics, the last layer and losses stay float32.
    Reported figures and certificates never use either."""
    compile: bool = False
    """Compile the elementwise part of training bounds (torch.compile; it needs a C++ compiler, or a CUDA GPU). Takes
    some ten seconds at the start: it pays for wide networks and long trainings only."""
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
        if self.average_from is not None and self.average_from >= self.epochs:
            raise ValueError(f"average_from = {self.average_from:g} lies behind the last of epochs = {self.epochs}")
        if self.patience is not None and self.keep == "last":
            raise ValueError(f"patience = {self.patience} needs keep = best-adversarial or best-interval")
        if self.keep != "last" and self.warmup + self.ramp >= self.epochs:
            raise ValueError(
                f"keep = {self.keep} compares epochs at the full radius, and warmup + ramp = "
                f"{self.warmup + self.ramp:g} leaves none of epochs = {self.epochs}"
            )
        if self.average_from is not None and self.keep != "last":
            raise ValueError(f"keep = {self.keep} takes one epoch's weights, average_from those of many: choose one")
        if self.final and self.keep != "last":
            raise ValueError(f"keep = {self.keep} chooses on validation images that final = true trains on")
        return self
