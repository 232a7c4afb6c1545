# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A small convolutional network: 166,000 parameters on 28x28 images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.errors import BadInput
from ctkd.options import Count, Options

if TYPE_CHECKING:
    from torch import nn


class CNNSmallOptions(Options):
    """Sizes of the hidden layers."""

    channels: Count = 16
    """Of the first convolution; the second has twice as many."""
    hidden: Count = 100
    """Neurons of the fully connected layer: the features of distillation."""
    batch_norm: bool = True
    """Batch norm before each ReLU."""


class CNNSmall:
    """conv c 4x4 stride 2 - conv 2c 4x4 stride 2 - fc hidden - fc classes, batch norm after each hidden layer."""

    Options = CNNSmallOptions

    def __init__(self, options: CNNSmallOptions) -> None:
        self.options = options

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        from torch import nn

        if len(input_shape) != 3 or min(input_shape[1:]) < 4:
            raise BadInput(f"model cnn-small needs images of at least 4x4 pixels, found inputs of shape {input_shape}")
        options = self.options
        channels, (height, width) = options.channels, (size // 2 // 2 for size in input_shape[1:])

        def norm(layer: type[nn.Module], size: int) -> list[nn.Module]:
            return [layer(size)] if options.batch_norm else []

        return nn.Sequential(
            nn.Conv2d(input_shape[0], channels, 4, stride=2, padding=1),
            *norm(nn.BatchNorm2d, channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
            *norm(nn.BatchNorm2d, 2 * channels),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * channels * height * width, options.hidden),
            *norm(nn.BatchNorm1d, options.hidden),
            nn.ReLU(),
            nn.Linear(options.hidden, classes),
        )
