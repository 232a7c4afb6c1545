# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Regularisers of Shi et al. 2021 (arXiv 2103.15887, Section 3.3), and L1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctkd.boxes import Box, centre_radius
from ctkd.distributed import all_sum, batch_mean
from ctkd.propagate import Bounds

TOLERANCE = 0.5


def shi_regularisers(bounds: Bounds, box: Box) -> tuple[Tensor, Tensor]:
    """Tightness and ReLU balance, averaged over the activations.

    Args:
        bounds: (lower, upper) of each activation's input over ``box``, after batch norm.
        box: the input boxes.

    Returns:
        Two scalars. A layer whose balance is not finite (no active or no inactive neuron) adds nothing to the
        second, and still counts in its divisor, as in the published code.
    """
    if not bounds:  # a network without activations
        return box.lower.new_zeros(()), box.lower.new_zeros(())
    input_width = batch_mean(centre_radius(box)[1])  # as propagated
    tightness, balance = [], []
    for lower, upper in bounds.values():
        centre, radius = (lower + upper) / 2, (upper - lower) / 2
        ratio = input_width / batch_mean(radius).clamp(min=1e-12)
        tightness.append((TOLERANCE - ratio).relu() / TOLERANCE)
        balance.append(_balance(lower, upper, centre))
    return torch.stack(tightness).mean(), torch.stack(balance).mean()


def _balance(lower: Tensor, upper: Tensor, centre: Tensor) -> Tensor:
    active, inactive = (lower > 0).to(centre.dtype), (upper < 0).to(centre.dtype)
    deviation = (centre - batch_mean(centre)).square()
    top = torch.stack([batch_mean(centre * active), all_sum((deviation * active).sum())])
    bottom = torch.stack([-batch_mean(centre * inactive), all_sum((deviation * inactive).sum())])
    usable = ((top > 0) & (bottom > 0)).all()
    # Where it is not usable both are replaced before dividing, so that no gradient becomes 0 * inf.
    ratio = torch.where(usable, top, 1.0) / torch.where(usable, bottom, 1.0)
    ratio = torch.minimum(ratio, 1 / ratio.clamp(min=1e-12))
    term = (TOLERANCE - ratio).relu().sum() / TOLERANCE
    return torch.where(usable, term, torch.zeros_like(term))


def l1_norm(module: nn.Module) -> Tensor:
    """Sum of absolute weights of all convolutions and fully connected layers; no biases, no batch norm."""
    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum((layer.weight.abs().sum() for layer in layers), torch.zeros(()))
