# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A small residual network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.models.options import ImageNetOptions, check_images
from ctkd.options import Count, Index

if TYPE_CHECKING:
    from torch import nn


class ResNetOptions(ImageNetOptions):
    """Depth, width and the way from images to features."""

    width: Count = 16
    """Channels of the first convolution and the first stage; each further stage has twice as many."""
    blocks: tuple[Count, ...] = (1, 1, 1)
    """Residual blocks of each stage. From the second stage on, the first block has stride 2."""
    pool: bool = False
    """Average over all pixels before the fully connected layers, instead of flattening."""
    hidden: Index = 100
    """Neurons of a fully connected layer before the last; 0 for none."""


class ResNet:
    """conv w - stages of residual blocks - fc hidden - fc classes, all convolutions 3x3 with padding 1.

    Blocks as in He et al. 2016 (arXiv 1512.03385, Figure 5 left), with 1x1 convolutions on shortcuts that change
    shape; far smaller than theirs, because bounds loosen with depth.
    """

    Options = ResNetOptions

    def __init__(self, options: ResNetOptions) -> None:
        self.options = options

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        from torch import nn

        from ctkd.models.blocks import BasicBlock, followed, normalisation

        options = self.options
        check_images("resnet", input_shape, 2 ** max(0, len(options.blocks) - 1))
        style = (options.batch_norm, options.activation)
        channels, *size = input_shape
        layers = normalisation(options, channels)
        layers += followed(nn.Conv2d(channels, options.width, 3, padding=1), *style)
        channels = options.width
        for stage, blocks in enumerate(options.blocks):
            for block in range(blocks):
                after, stride = options.width * 2**stage, 2 if stage and not block else 1
                layers.append(BasicBlock(channels, after, stride, *style))
                channels, size = after, [-(-pixels // stride) for pixels in size]
        layers += [nn.AdaptiveAvgPool2d(1)] if options.pool else []
        features = channels * (1 if options.pool else size[0] * size[1])
        layers.append(nn.Flatten())
        if options.hidden:
            layers += followed(nn.Linear(features, options.hidden), *style)
        return nn.Sequential(*layers, nn.Linear(options.hidden or features, classes))
