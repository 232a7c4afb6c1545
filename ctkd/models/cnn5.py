# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""CNN-5, a quarter of CNN-7: 4.4 million parameters at 3x32x32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.models.options import ImageNetOptions, check_images
from ctkd.options import Count

if TYPE_CHECKING:
    from torch import nn


class CNN5Options(ImageNetOptions):
    """The defaults are the published network."""

    width: Count = 64
    """Channels of the first two convolutions; the third has twice as many."""
    hidden: Count = 512
    """Neurons of the fully connected layer: the features of distillation."""


class CNN5:
    """conv w 3x3 - conv w 4x4 stride 2 - conv 2w 4x4 stride 2 - fc hidden - fc classes.

    As the code of CTRAIN has it (ADA-research/CTRAIN, where it is called CNN5_Mao). Padding 1, batch norm after
    each hidden layer.
    """

    Options = CNN5Options

    def __init__(self, options: CNN5Options) -> None:
        self.options = options

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        from torch import nn

        from ctkd.models.blocks import followed, normalisation

        check_images("cnn5", input_shape, 4)
        options, width, (channels, height, breadth) = self.options, self.options.width, input_shape
        style = (options.batch_norm, options.activation)
        return nn.Sequential(
            *normalisation(options, channels),
            *followed(nn.Conv2d(channels, width, 3, padding=1), *style),
            *followed(nn.Conv2d(width, width, 4, stride=2, padding=1), *style),
            *followed(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), *style),
            nn.Flatten(),
            *followed(nn.Linear(2 * width * (height // 4) * (breadth // 4), options.hidden), *style),
            nn.Linear(options.hidden, classes),
        )
