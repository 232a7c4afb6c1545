# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from ctkd.options import Count, Options, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ctkd.boxes import Box


class PGDOptions(Options):
    """Steps along the sign of the gradient from a uniform start, clamped to the box."""

    steps: Count = 8
    """Gradient steps of each restart."""
    restarts: Count = 1
    """Random starting points."""
    step_size: Positive = 0.25
    """Relative to the box's half-width, elementwise. With one step, 10 lands on a corner."""
    objective: Literal["cross-entropy", "margin"] = "cross-entropy"
    """What is maximised; ``margin`` is the largest other logit minus the label's."""


class PGD:
    """Returns, per sample, the point of largest objective among all steps and restarts; the last point for one step."""

    Options = PGDOptions

    def __init__(self, options: PGDOptions) -> None:
        self.options = options

    def perturb(
        self,
        logits: Callable[[Tensor], Tensor],
        x: Tensor,
        labels: Tensor,
        box: Box,
        generator: torch.Generator,
    ) -> Tensor:
        import torch

        options = self.options
        width = box.upper - box.lower
        best, best_value = x, torch.full_like(labels, -torch.inf, dtype=x.dtype)
        for _ in range(options.restarts):
            noise = torch.rand(x.shape, dtype=x.dtype, generator=generator).to(x.device)
            point = box.clamp(box.lower + noise * width)
            for _ in range(options.steps):
                value, gradient = self._gradient(logits, point, labels)
                if options.steps * options.restarts > 1:
                    best, best_value = _keep(best, best_value, point, value)
                point = box.clamp(point + gradient.sign() * (options.step_size / 2) * width)
            if options.steps * options.restarts == 1:
                return point
            with torch.no_grad():
                best, best_value = _keep(best, best_value, point, self._objective(logits(point), labels))
        return best

    def _objective(self, logits: Tensor, labels: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        if self.options.objective == "cross-entropy":
            return cross_entropy(logits, labels, reduction="none")
        own = logits.gather(1, labels[:, None])
        others = logits.scatter(1, labels[:, None], -torch.inf)
        return others.amax(1) - own.squeeze(1)

    def _gradient(self, logits: Callable[[Tensor], Tensor], point: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        with torch.enable_grad():
            point = point.detach().requires_grad_()
            value = self._objective(logits(point), labels)
            (gradient,) = torch.autograd.grad(value.sum(), point)
        return value.detach(), gradient


def _keep(best: Tensor, best_value: Tensor, point: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    import torch

    better = value > best_value
    chosen = torch.where(better.reshape(-1, *[1] * (point.dim() - 1)), point, best)
    return chosen, torch.where(better, value, best_value)
