# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""B-MTARD, balanced multi-teacher adversarial robustness distillation (Zhao et al. 2023, arXiv 2306.16170)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from ctkd.distill.predictions import clean_logits, logits_at
from ctkd.divergence import divergence_from
from ctkd.options import NonNegative, Number, Options, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Enclosure, Kind, Lesson

Temperature = Annotated[Number, Field(ge=1)]
SMALLEST = 1e-12
"""First losses below this count as this, so that their ratio stays finite."""


class BMTARDOptions(Options):
    """Values of the public code."""

    adversarial_weight: Unit = 0.5
    """Weight of the adversarial teacher's term at the start; the natural teacher's is the rest of 1."""
    weight_rate: Unit = 0.025
    """How far weights move in a step towards the terms' relative losses; 0 switches this balance off."""
    adversarial_temperature: Temperature = 1.0
    """Of the adversarial teacher at the start."""
    natural_temperature: Temperature = 1.0
    """Of the natural teacher at the start."""
    temperature_rate: NonNegative = 0.001
    """How far temperatures move in a step towards equal entropies; 0 switches this balance off."""
    largest_temperature: Temperature = 10.0
    """Temperatures are kept between 1 and this."""

    @model_validator(mode="after")
    def _holds_the_start(self) -> Self:
        start = max(self.adversarial_temperature, self.natural_temperature)
        if start > self.largest_temperature:
            raise ValueError(
                f"a teacher starts with temperature {start:g}, above largest_temperature = {self.largest_temperature:g}"
            )
        return self


class BMTARD:
    """Two teachers, adversarial first, natural second: ``w1 KL(p1(x_adv; T1) || q(x')) + w2 KL(p2(x; T2) || q(x))``.

    It replaces the point's cross entropy; q is the student, x' the bound method's point. Temperatures soften the
    teachers only, and no factor T^2 stands before the terms. In each step, from this step's batch alone:

    - relative loss balance: r_i = loss_i / loss_i of the first step, then
      ``w_i <- w_i - weight_rate (w_i - r_i / (r_1 + r_2))``, clipped at 0 and scaled to sum to 1; the loss uses the
      new weights;
    - entropy balance: ``T_i <- T_i - temperature_rate sign(H_i - H_other)``, clipped, H_i the mean entropy of
      p_i(.; T_i): the flatter teacher is sharpened and the other softened; the next step uses the new temperatures.

    The first step is the first with a radius above 0. Where a method takes its loss on several points, the first of
    them in a step moves the balance and the others use it.

    Deviations from the public code: both rates stay constant (there they drop by 10 with the learning rate at epochs
    215, 260 and 285 of 300); the KL is a sum over the classes, not a mean, which the balance does not see; nothing is
    added inside logarithms; sign(H_i - H_other) for sign(H_i / H_other - 1), the same wherever H_other > 0.

    Weights, temperatures and first losses are kept in checkpoints. They stay on the losses' device, so no step waits
    for the host.
    """

    Options = BMTARDOptions
    reads: frozenset[Kind] = frozenset({"point"})
    teachers = 2
    teacher_inputs = frozenset({"clean", "adversarial"})
    student_points = frozenset({"clean"})
    needs_features = False
    point = "adversarial"

    def __init__(self, options: BMTARDOptions) -> None:
        self.options = options
        # Pairs, adversarial first. Lists until a step makes them float64 tensors: both hold the same numbers.
        self.weights: Tensor | list[float] = [options.adversarial_weight, 1 - options.adversarial_weight]
        self.temperatures: Tensor | list[float] = [options.adversarial_temperature, options.natural_temperature]
        self.first: Tensor | list[float] | None = None
        self.step = -1
        self.softening: Tensor | list[float] = self.temperatures

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        import torch

        from ctkd.api import batch_mean

        fresh = lesson.schedule.step != self.step
        if fresh:
            self.softening = self.temperatures
        own = logits_at(enclosure)
        temperatures = torch.as_tensor(self.softening, dtype=torch.float64, device=own.device)
        softened = [
            lesson.teachers[0]["adversarial"].logits / temperatures[0],
            lesson.teachers[1]["clean"].logits / temperatures[1],
        ]
        adversarial = lesson.record("logits-adversarial-teacher", divergence_from(softened[0], own))
        natural = lesson.record("logits-natural-teacher", divergence_from(softened[1], clean_logits(lesson)))
        if fresh:
            self.step = lesson.schedule.step
            self._balance(torch.stack([batch_mean(part.detach()) for part in (adversarial, natural)]).double())
            self._sharpen(temperatures, torch.stack([_entropy(part) for part in softened]).double())
        weights = torch.as_tensor(self.weights, dtype=torch.float64, device=own.device)
        for i, who in enumerate(("adversarial", "natural")):
            lesson.record(f"{who}-weight", weights[i])
            lesson.record(f"{who}-temperature", temperatures[i])
        return weights[0] * adversarial + weights[1] * natural

    def _balance(self, losses: Tensor) -> None:
        """Relative loss balance; remembers the first losses."""
        import torch

        first = losses if self.first is None else self.first
        self.first = torch.as_tensor(first, dtype=losses.dtype, device=losses.device)
        relative = losses / self.first.clamp(min=SMALLEST)
        weights = torch.as_tensor(self.weights, dtype=losses.dtype, device=losses.device)
        goal = torch.where(relative.sum() > 0, relative / relative.sum(), weights)
        weights = (weights - self.options.weight_rate * (weights - goal)).clamp(min=0)
        self.weights = weights / weights.sum()

    def _sharpen(self, temperatures: Tensor, entropies: Tensor) -> None:
        """Entropy balance."""
        moved = temperatures - self.options.temperature_rate * (entropies - entropies.flip(0)).sign()
        self.temperatures = moved.clamp(1, self.options.largest_temperature)

    def state_dict(self) -> dict[str, Any]:
        def plain(pair: Tensor | list[float]) -> list[float]:
            return [float(value) for value in pair]

        return {
            "weights": plain(self.weights),
            "temperatures": plain(self.temperatures),
            "first": None if self.first is None else plain(self.first),
            "step": self.step,
        }

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        self.weights, self.temperatures = values["weights"], values["temperatures"]
        self.first, self.step = values["first"], values["step"]
        self.softening = self.temperatures


def _entropy(logits: Tensor) -> Tensor:
    """The mean over the batch of the entropy of softmax(logits)."""
    from ctkd.api import batch_mean

    logarithms = logits.log_softmax(1)
    return -batch_mean((logarithms.exp() * logarithms).sum(1))
