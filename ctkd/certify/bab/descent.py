# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The search for counterexamples: projected gradient descent on the margin to one rival each."""

from __future__ import annotations

import torch
from torch import Tensor

from ctkd.accuracy import smallest_margin
from ctkd.boxes import Box
from ctkd.propagate import Network, margins_of

SIZES = (1.0, 0.5, 0.25, 0.1)
"""Step sizes relative to the box's half-width, over equal parts of the steps."""


def descend(
    network: Network, box: Box, label: Tensor, rivals: Tensor, start: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """From each start towards a smaller margin to its rival, inside one box.

    Args:
        box: (1, *input_shape).
        label: (1,).
        rivals: (starts,).
        start: (starts, *input_shape).

    Returns:
        The point of the smallest margin to any class that was met, (1, *input_shape), and that margin, (1,).
    """
    labels, half = label.expand(len(start)), (box.upper - box.lower) / 2
    point, best, least = box.clamp(start), start[:1], start.new_full((1,), torch.inf)
    for step in range(steps + 1):
        with torch.enable_grad():
            point = point.detach().requires_grad_(step < steps)
            margins = margins_of(network(point), labels)
            if step < steps:
                (gradient,) = torch.autograd.grad(margins.gather(1, rivals[:, None]).sum(), point)
        found = smallest_margin(margins.detach(), labels)
        k = found.argmin()
        if found[k] < least[0]:
            best, least = point.detach()[k : k + 1].clone(), found[k : k + 1]
        if least[0] <= 0 or step == steps:
            break
        size = SIZES[step * len(SIZES) // steps]
        point = box.clamp(point.detach() - size * half * gradient.sign())
    return best, least
