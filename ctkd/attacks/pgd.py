# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from ctkd.options import Count, Options, Positive, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.boxes import Box
    from ctkd.randomness import Noise


class PGDOptions(Options):
    """Steps along the sign of the gradient from a uniform start, clamped to the box."""

    steps: Count = 8
    """Gradient steps of each restart."""
    restarts: Count = 1
    """Random starting points."""
    step_size: Positive = 0.25
    """Relative to the box's half-width, elementwise. With one step, 10 lands on a corner."""
    decay: Unit = 1.0
    """The step size is multiplied by this at each part of ``decay_at``."""
    decay_at: tuple[Unit, ...] = ()
    """Parts of the steps after which the step size decays, such as 0.7."""

    warm_start: bool = False
    """In training, the first restart begins where the image's last attack ended, relative to the box (Zheng et al.
    2020, arXiv 1912.11969). Kept in checkpoints, a byte for each pixel. Images must not be augmented."""

    @model_validator(mode="after")
    def _decay_is_whole(self) -> Self:
        if (self.decay < 1) != bool(self.decay_at):
            raise ValueError("decay (below 1) and decay_at (parts of the steps) go together; set both or neither")
        return self

    objective: Literal["cross-entropy", "margin", "kl-teacher", "kl-student"] = "cross-entropy"
    """What is maximised. ``margin``: the largest other logit minus the label's. ``kl-...``: the divergence of the
    prediction from the teacher's, or from the student's own, at the clean input (soft labels)."""


class PGD:
    """Returns, per sample, the point of largest objective among all steps and restarts; the last point for one step."""

    Options = PGDOptions

    def __init__(self, options: PGDOptions) -> None:
        self.options = options

    @property
    def reference(self) -> str | None:
        """Whose prediction at the clean input ``perturb`` is given."""
        _, _, who = self.options.objective.partition("kl-")
        return who or None

    @property
    def warm_start(self) -> bool:
        """Whether ``perturb`` is given where the last attacks ended."""
        return self.options.warm_start

    def perturb(
        self,
        logits: Callable[[Tensor], Tensor],
        x: Tensor,
        labels: Tensor,
        box: Box,
        noise: Noise,
        reference: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        import torch

        options = self.options
        width = box.upper - box.lower
        best, best_value = x, torch.full_like(labels, -torch.inf, dtype=x.dtype)
        for restart in range(options.restarts):
            point = box.clamp(box.lower + noise.uniform(x) * width)
            if start is not None and restart == 0:
                point = torch.where(start.isnan(), point, start)
            for step in range(options.steps):
                value, gradient = self._gradient(logits, point, labels, reference)
                if options.steps * options.restarts > 1:
                    best, best_value = _keep(best, best_value, point, value)
                point = box.clamp(point + gradient.sign() * (self._step_size(step) / 2) * width)
            if options.steps * options.restarts == 1:
                return point
            with torch.no_grad():
                best, best_value = _keep(best, best_value, point, self._objective(logits(point), labels, reference))
        return best

    def _step_size(self, step: int) -> float:
        passed = sum(step >= part * self.options.steps for part in self.options.decay_at)
        return self.options.step_size * self.options.decay**passed

    def _objective(self, logits: Tensor, labels: Tensor, reference: Tensor | None) -> Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        if self.reference is not None:
            assert reference is not None
            # The divergence less the entropy of the reference, which no input changes.
            return cross_entropy(logits, reference.softmax(1), reduction="none")
        if self.options.objective == "cross-entropy":
            return cross_entropy(logits, labels, reduction="none")
        own = logits.gather(1, labels[:, None])
        others = logits.scatter(1, labels[:, None], -torch.inf)
        return others.amax(1) - own.squeeze(1)

    def _gradient(
        self, logits: Callable[[Tensor], Tensor], point: Tensor, labels: Tensor, reference: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        import torch

        with torch.enable_grad():
            point = point.detach().requires_grad_()
            value = self._objective(logits(point), labels, reference)
            (gradient,) = torch.autograd.grad(value.sum(), point)
        return value.detach(), gradient


def _keep(best: Tensor, best_value: Tensor, point: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    import torch

    better = value > best_value
    chosen = torch.where(better.reshape(-1, *[1] * (point.dim() - 1)), point, best)
    return chosen, torch.where(better, value, best_value)
