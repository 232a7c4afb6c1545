# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A small convolutional network: 166,000 parameters on 28x28 images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.models.options import ActivationName, check_images
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
    """Batch norm before each activation."""
    activation: ActivationName = "relu"
    """After each hidden layer."""


class CNNSmall:
    """conv c 4x4 stride 2 - conv 2c 4x4 stride 2 - fc hidden - fc classes, batch norm after each hidden layer."""

    Options = CNNSmallOptions

    def __init__(self, options: CNNSmallOptions) -> None:
        self.options = options

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        from torch import nn

        from ctkd.models.blocks import followed

        check_images("cnn-small", input_shape, 4)
        options, style = self.options, (self.options.batch_norm, self.options.activation)
        channels, (height, width) = options.channels, (size // 2 // 2 for size in input_shape[1:])

        return nn.Sequential(
            *followed(nn.Conv2d(input_shape[0], channels, 4, stride=2, padding=1), *style),
            *followed(nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1), *style),
            nn.Flatten(),
            *followed(nn.Linear(2 * channels * height * width, options.hidden), *style),
            nn.Linear(options.hidden, classes),
        )
