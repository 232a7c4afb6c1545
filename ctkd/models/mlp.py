# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A fully connected network."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from ctkd.models.options import ActivationName
from ctkd.options import Count, Options

if TYPE_CHECKING:
    from torch import nn


class MLPOptions(Options):
    """Hidden layers."""

    widths: tuple[Count, ...] = (100, 100)
    """Neurons of each hidden layer."""
    batch_norm: bool = True
    """Batch norm before each activation."""
    activation: ActivationName = "relu"
    """After each hidden layer."""


class MLP:
    """fc w1 - ... - fc wn - fc classes."""

    Options = MLPOptions

    def __init__(self, options: MLPOptions) -> None:
        self.options = options

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        from torch import nn

        from ctkd.models.blocks import followed

        layers: list[nn.Module] = [nn.Flatten()]
        width = prod(input_shape)
        for size in self.options.widths:
            layers += followed(nn.Linear(width, size), self.options.batch_norm, self.options.activation)
            width = size
        return nn.Sequential(*layers, nn.Linear(width, classes))
