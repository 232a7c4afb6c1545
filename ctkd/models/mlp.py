# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A fully connected network."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from ctkd.options import Count, Options

if TYPE_CHECKING:
    from torch import nn


class MLPOptions(Options):
    """Hidden layers, each followed by ReLU."""

    widths: tuple[Count, ...] = (100, 100)
    """Neurons of each hidden layer."""
    batch_norm: bool = True
    """Batch norm before each ReLU."""


class MLP:
    """fc w1 - ... - fc wn - fc classes."""

    Options = MLPOptions

    def __init__(self, options: MLPOptions) -> None:
        self.options = options

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        from torch import nn

        layers: list[nn.Module] = [nn.Flatten()]
        width = prod(input_shape)
        for size in self.options.widths:
            layers.append(nn.Linear(width, size))
            if self.options.batch_norm:
                layers.append(nn.BatchNorm1d(size))
            layers.append(nn.ReLU())
            width = size
        return nn.Sequential(*layers, nn.Linear(width, classes))
