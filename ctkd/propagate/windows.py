# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Rows that are zero outside a window: what a neuron behind convolutions depends on, as long as that is a small part.

The idea is auto_LiRPA's "patches" mode (Xu et al. 2020, arXiv 2002.12920). Here it covers a neuron's way back through
convolutions and activations; from there on rows are whole images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ctkd.propagate.network import Network
from ctkd.propagate.ops import Conv, Lines, Relaxation

SHARE = 0.5
"""Windows are used while they are at most this part of the image."""


@dataclass(frozen=True)
class Path:
    """The way back of a node's neurons on which they have windows; no nodes where no window is small enough.

    Attributes:
        nodes: what windows are pulled back through, nearest first.
        sizes: the windows' (height, width) before each of these nodes and behind the last.
        stop: the node that then is reached.
    """

    nodes: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    stop: int

    @staticmethod
    def back_from(network: Network, node: int, relaxations: Mapping[int, Relaxation]) -> Path:
        """As far back as windows reach."""
        nodes: list[int] = []
        sizes, stop = [(1, 1)], node
        while stop > 0:
            op = network.nodes[stop].op
            source = network.nodes[stop].inputs[0]
            # Only lines remove what a convolution sends out of the image, so two convolutions need some in between.
            if isinstance(op, Conv) and not (nodes and isinstance(network.nodes[nodes[-1]].op, Conv)):
                kernel = op.weight.shape[2:]
                height, width = (
                    (size - 1) * stride + dilation * (k - 1) + 1
                    for size, stride, dilation, k in zip(sizes[-1], op.stride, op.dilation, kernel, strict=True)
                )
                if height * width > SHARE * prod(network.nodes[source].shape[1:]):
                    break
            elif isinstance(relaxations.get(stop), Lines) and nodes:
                height, width = sizes[-1]
            else:
                break
            nodes.append(stop)
            sizes.append((height, width))
            stop = source
        return Path(tuple(nodes), tuple(sizes), stop)

    def widest(self, network: Network) -> int:
        """The most coefficients that a row has on the way to the input."""
        channels = (network.nodes[i].shape[0] for i in (*self.nodes, self.stop) if self.nodes)
        windows = [count * height * width for count, (height, width) in zip(channels, self.sizes, strict=False)]
        return max(*windows, *(prod(entry.shape) for entry in network.nodes[: self.stop + 1]), 1)

    def pull(
        self, network: Network, neurons: Tensor, relaxations: Mapping[int, Relaxation], dtype: torch.dtype
    ) -> tuple[int, Tensor, Tensor]:
        """The functionals +neuron and -neuron of one sample, as whole images at ``stop``.

        Returns: ``stop``, rows there, (1, 2 * neurons, *shape), and constants, (neurons, 2).
        """
        count, height, width = network.nodes[self.nodes[0]].shape
        channel, place = neurons // (height * width), neurons % (height * width)
        top, left = place // width, place % width
        unit = F.one_hot(channel, count).to(dtype)
        rows = torch.stack([unit, -unit], 1)[..., None, None]  # (neurons, 2, channels, 1, 1)
        constant = rows.new_zeros(rows.shape[:2])
        for i in self.nodes:
            op = network.nodes[i].op
            gained: Tensor | None
            if isinstance(op, Conv):
                rows, gained = _through(op, rows)
                top, left = top * op.stride[0] - op.padding[0], left * op.stride[1] - op.padding[1]
            else:
                lines = relaxations[i]
                assert isinstance(lines, Lines)
                rows, gained = _windows(lines, top, left, rows.shape[3:]).backward(rows)
            constant = constant if gained is None else constant + gained
        return self.stop, _whole(rows, top, left, network.nodes[self.stop].shape).unsqueeze(0), constant


def _through(op: Conv, rows: Tensor) -> tuple[Tensor, Tensor]:
    """All that reaches out of the image multiplies padding, which is zero, and is cut off later."""
    flat = rows.flatten(0, 1)
    size = [
        (size - 1) * stride + dilation * (k - 1) + 1
        for size, stride, dilation, k in zip(rows.shape[3:], op.stride, op.dilation, op.weight.shape[2:], strict=True)
    ]
    shape = (op.weight.shape[1] * op.groups, *size)
    pulled, gained = Conv(op.weight, op.bias, op.stride, (0, 0), op.dilation, op.groups).backward(flat, shape)
    assert gained is not None
    return pulled.reshape(*rows.shape[:2], *shape), gained.reshape(rows.shape[:2])


def _windows(lines: Lines, top: Tensor, left: Tensor, size: torch.Size) -> Lines:
    """One sample's lines at each window, as those of a batch; zero outside the image, where rows so become zero."""

    def cut(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        over = [size[1] - 1, size[1] - 1, size[0] - 1, size[0] - 1]
        padded = F.pad(x[0], over).movedim(0, 2)  # (height, width, channels)
        return padded.unfold(0, size[0], 1).unfold(1, size[1], 1)[top + size[0] - 1, left + size[1] - 1]

    lower, upper = cut(lines.lower_slope), cut(lines.upper_slope)
    assert lower is not None
    assert upper is not None
    return Lines(lower, upper, cut(lines.lower_shift), cut(lines.upper_shift))


def _whole(rows: Tensor, top: Tensor, left: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(neurons, 2, channels, *window) at its place in (2 * neurons, channels, height, width)."""
    (channels, height, width), (down, across) = shape, rows.shape[3:]
    high, wide = height + 2 * (down - 1), width + 2 * (across - 1)
    y, x = (top + down - 1)[:, None] + torch.arange(down, device=top.device), (left + across - 1)[:, None]
    place = (y * wide).unsqueeze(2) + (x + torch.arange(across, device=top.device)).unsqueeze(1)
    place = place.flatten(1)[:, None, None].expand(-1, 2, channels, -1)
    images = rows.new_zeros(*rows.shape[:3], high * wide).scatter_(3, place, rows.flatten(3))
    images = images.reshape(-1, channels, high, wide)
    return images[..., down - 1 : down - 1 + height, across - 1 : across - 1 + width]
