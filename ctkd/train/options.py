# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Options of the training loop. Light: no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ctkd.options import Count, Index, NonNegative, Options, Positive, Radius, Unit

Factor = Annotated[Positive, Field(le=10)]
OptimizerName = Literal["adam", "adamw", "sgd"]
LRSchedule = Literal["milestones", "cyclic", "one-cycle"]
Momentum = Annotated[NonNegative, Field(lt=1)]
LRRise = Annotated[Positive, Field(lt=1)]


def check_optimizer(optimizer: OptimizerName, momentum: float, nesterov: bool) -> None:
    """Raises: ValueError if they do not go together."""
    if nesterov and (optimizer != "sgd" or momentum == 0):
        raise ValueError("nesterov = true needs optimizer = sgd and a momentum above 0")


def check_rates(lr_schedule: LRSchedule, milestones: tuple[float, ...], lr_cycles: int) -> None:
    """Raises: ValueError if they do not go together."""
    if milestones and lr_schedule != "milestones":
        raise ValueError(f"lr_schedule = {lr_schedule} has no milestones; set milestones = []")
    if lr_cycles > 1 and lr_schedule != "cyclic":
        raise ValueError(f"lr_cycles = {lr_cycles} needs lr_schedule = cyclic")


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
    micro_batch: Count | None = None
    """Images whose bounds are in memory at once: the step is computed in such parts, with the batch-norm statistics
    and, up to floating-point order, the result of the whole batch; the parts are computed several times. None: all."""
    optimizer: OptimizerName = "adam"
    """``adamw`` decays weights apart from the gradient; ``sgd`` is stochastic gradient descent with ``momentum``."""
    momentum: Momentum = 0.9
    """Of ``sgd``; Adam has its own."""
    nesterov: bool = False
    """Nesterov's momentum, of ``sgd``."""
    weight_decay: NonNegative = 0.0
    """L2 penalty on all parameters; with ``adamw`` decoupled from the gradient."""
    lr: Positive = 5e-4
    """Learning rate: the first one with ``milestones``, the highest one with the other schedules."""
    lr_schedule: LRSchedule = "milestones"
    """``milestones``: drops by ``lr_decay``. ``cyclic``: rises and falls linearly, ``lr_cycles`` times. ``one-cycle``:
    rises once by half a cosine, and falls by another to a ten-thousandth of where it began (Smith and Topin 2018)."""
    milestones: tuple[NonNegative, ...] = ()
    """Epochs after which the learning rate is multiplied by ``lr_decay``."""
    lr_decay: Unit = 0.2
    """Factor at each milestone."""
    lr_low: Unit = 0.0
    """Where ``cyclic`` and ``one-cycle`` begin, as a part of ``lr``."""
    lr_rise: LRRise = 0.5
    """The part of a cycle in which the rate rises."""
    lr_cycles: Count = 1
    """Cycles of ``cyclic`` in the whole training."""
    clip: Positive = 10.0
    """Largest global L2 norm of the gradient."""
    edac: NonNegative = 0.0
    """EDAC: before each step, a step of the same optimiser that lowers this times the adversarial certainty, the mean
    standard deviation of the logits at attacked points (Zhang et al. 2023, arXiv 2310.04539); 0 is off. It is neither
    clipped nor regularised, as published. Published: 0.1 and 0.3."""
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
    def _optimisation_fits(self) -> Self:
        check_optimizer(self.optimizer, self.momentum, self.nesterov)
        check_rates(self.lr_schedule, self.milestones, self.lr_cycles)
        return self

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
