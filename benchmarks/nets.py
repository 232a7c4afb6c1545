# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Networks, weights and data that every contender makes for itself, equal by the seed. No ctkd in here."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import Case, Layers

STEPS_IN_DATA = 64
"""How many batches the random data hold."""
STRIDE = 7
"""Images overlap: each begins this many numbers after the one before, so that they need little memory."""

MAKERS: dict[str, Any] = {
    "conv": nn.Conv2d,
    "linear": nn.Linear,
    "norm1d": nn.BatchNorm1d,
    "norm2d": nn.BatchNorm2d,
    "relu": nn.ReLU,
    "flatten": nn.Flatten,
}


def build(layers: Layers) -> nn.Sequential:
    return nn.Sequential(*(MAKERS[kind](*arguments) for kind, *arguments in layers))


def initialise(module: nn.Module, seed: int) -> None:
    """Normal(0, sqrt(2 pi) / fan_in) (Shi et al. 2021), small random biases, batch norm near the identity."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                std = math.sqrt(2 * math.pi) / part.weight[0].numel()
                part.weight.copy_(torch.randn(part.weight.shape, generator=noise, dtype=torch.float32) * std)
                assert part.bias is not None
                part.bias.copy_(torch.randn(part.bias.shape, generator=noise, dtype=torch.float32) * 0.01)
            elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.weight.copy_(1 + 0.1 * torch.randn(part.weight.shape, generator=noise, dtype=torch.float32))
                part.bias.copy_(0.1 * torch.randn(part.bias.shape, generator=noise, dtype=torch.float32))


def images(case: Case, batches: int = STEPS_IN_DATA) -> tuple[Tensor, Tensor]:
    """Uniform noise in [0, 1] and random labels; pixels of neighbouring images overlap in memory."""
    noise = torch.Generator().manual_seed(case.seed + 1)
    count, numbers = batches * case.batch, math.prod(case.shape)
    flat = torch.rand(STRIDE * count + numbers, generator=noise, dtype=torch.float32)
    inner = [math.prod(case.shape[i + 1 :]) for i in range(len(case.shape))]
    labels = torch.randint(case.classes, (count,), generator=noise)
    return flat.as_strided((count, *case.shape), (STRIDE, *inner)), labels


def some_point(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """A point of the box that depends on ``x`` alone: what the check uses in the attack's place."""
    return torch.where((x * 997).frac() < 0.5, lower, upper)
