# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""CNN-7, the network of nearly all published results in certified training: 17.2 million parameters at 3x32x32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.models.options import ImageNetOptions, check_images
from ctkd.options import Count

if TYPE_CHECKING:
    from torch import nn

LARGE = 64
"""From this height or width on the last convolution has stride 2."""


class CNN7Options(ImageNetOptions):
    """The defaults are the published network."""

    width: Count = 64
    """Channels of the first two convolutions; the others have twice as many."""
    hidden: Count = 512
    """Neurons of the fully connected layer: the features of distillation."""


class CNN7:
    """conv w - conv w - conv 2w stride 2 - conv 2w - conv 2w - fc hidden - fc classes, all convolutions 3x3.

    Shi et al. 2021 (arXiv 2103.15887). Padding 1, batch norm after each hidden layer. On images of 64 pixels or
    more in height or width the last convolution has stride 2 too, as published for TinyImageNet.
    """

    Options = CNN7Options

    def __init__(self, options: CNN7Options) -> None:
        self.options = options

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        from torch import nn

        from ctkd.models.blocks import followed, normalisation

        check_images("cnn7", input_shape, 3)
        options, width, (channels, *size) = self.options, self.options.width, input_shape
        style = (options.batch_norm, options.activation)
        layers = normalisation(options, channels)
        last = 2 if max(size) >= LARGE else 1
        for after, stride in ((width, 1), (width, 1), (2 * width, 2), (2 * width, 1), (2 * width, last)):
            layers += followed(nn.Conv2d(channels, after, 3, stride, 1), *style)
            channels, size = after, [-(-pixels // stride) for pixels in size]
        layers += [nn.Flatten(), *followed(nn.Linear(channels * size[0] * size[1], options.hidden), *style)]
        return nn.Sequential(*layers, nn.Linear(options.hidden, classes))
