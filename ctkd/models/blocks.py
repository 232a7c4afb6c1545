# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Pieces that architectures share. Imports torch, so models import it only when they are built."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctkd.models.options import ActivationName, ImageNetOptions, per_channel

ACTIVATIONS: dict[ActivationName, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


class Normalise(nn.Module):
    """``(x - mean) / std`` on images, with fixed numbers per channel: the network still takes raw pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def normalisation(options: ImageNetOptions, channels: int) -> list[nn.Module]:
    """The first layer, or none where neither ``mean`` nor ``std`` is given. Raises: BadInput on a wrong count."""
    mean, std = per_channel("mean", options.mean, channels, 0.0), per_channel("std", options.std, channels, 1.0)
    return [Normalise(mean, std)] if options.mean or options.std else []


def followed(layer: nn.Linear | nn.Conv2d, batch_norm: bool, activation: ActivationName) -> list[nn.Module]:
    """A hidden layer, its batch norm and its activation."""
    return [layer, *normed(layer, batch_norm)[1:], ACTIVATIONS[activation]()]


def normed(layer: nn.Linear | nn.Conv2d, batch_norm: bool) -> list[nn.Module]:
    """A layer and its batch norm."""
    if not batch_norm:
        return [layer]
    dense = isinstance(layer, nn.Linear)
    return [layer, (nn.BatchNorm1d if dense else nn.BatchNorm2d)(layer.weight.shape[0])]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int, batch_norm: bool, activation: ActivationName) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *followed(nn.Conv2d(before, after, 3, stride, 1), batch_norm, activation),
            *normed(nn.Conv2d(after, after, 3, 1, 1), batch_norm),
        )
        same = (stride, before) == (1, after)
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(*normed(nn.Conv2d(before, after, 1, stride), batch_norm))
        )
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        joined: Tensor = self.activation(self.branch(x) + self.shortcut(x))
        return joined
