# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Tiny networks of rectifiers, as they are certified, with images and boxes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctkd.boxes import Box, perturbation_box
from ctkd.propagate import Network, margins_of
from ctkd.train.finish import finalise

SHAPE = (1, 4, 4)


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def _build(name: str) -> nn.Module:
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    if name == "leaky":
        hidden = nn.Linear(16, 9), nn.LeakyReLU(0.2), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)
        return nn.Sequential(nn.Flatten(), *hidden)
    first = nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.ReLU()
    if name == "conv":
        layers = nn.AvgPool2d(2, stride=1, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3), nn.ReLU()
        return nn.Sequential(*first, *layers)
    assert name == "residual"
    branch = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    return nn.Sequential(*first, Residual(branch), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))


NAMES = ("mlp", "leaky", "conv", "residual")


def network(name: str, seed: int = 0) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = _build(name)
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                assert layer.bias is not None
                nn.init.uniform_(layer.bias, -0.2, 0.2)
        return finalise(module, SHAPE)


def samples(net: Network, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images, labelled as the network does."""
    x = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return x, net(x).argmax(1)


def wide(net: Network, x: Tensor, eps: float) -> tuple[Network, Box]:
    """In the arithmetic of the bounds."""
    return net.to(torch.float64), perturbation_box(x, eps).to(torch.float64)


def points_in(box: Box, count: int, seed: int = 0) -> Tensor:
    """Uniform points and corners of one box, (2 * count, *shape)."""
    draw = torch.rand(count, *box.lower.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return box.lower + torch.cat([draw, draw.round()]) * (box.upper - box.lower)


def least_margin(net: Network, points: Tensor, label: int) -> Tensor:
    """(classes,): the smallest margins at the points."""
    return margins_of(net(points), torch.full((len(points),), label)).amin(0)
