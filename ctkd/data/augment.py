# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Random changes of training images: a batch at a time, on its device, each image by numbers of its own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ctkd.randomness import Noise


def crop_and_flip(
    x: Tensor, noise: Noise, crop: int = 0, padding: Literal["edge", "zeros"] = "edge", flip: bool = False
) -> Tensor:
    """Random crops of images extended by ``crop`` pixels, each mirrored with probability 1/2 if ``flip``.

    Args:
        x: (batch, channels, height, width), in [0, 1]; not written to.
        noise: of the same samples. An image's change depends on nothing else in the batch.
        crop: the window is moved by -crop..crop pixels in both directions, uniformly.
        padding: what is beyond the border: its nearest pixel, or 0, which is black: pixels are not normalised here.
        flip: mirror left to right.

    Returns: like x. Nothing waits for the device.
    """
    draws = noise.uniform(x.new_empty((len(x), 3), dtype=torch.float32))
    # The product may round up to the next integer.
    moves = (draws[:, :2] * (2 * crop + 1)).floor_().clamp_(max=2 * crop).to(torch.int64) - crop
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device) + moves[:, :1]
    columns = torch.arange(width, device=x.device) + moves[:, 1:]
    if flip:
        columns = torch.where(draws[:, 2:] < 0.5, columns.flip(1), columns)
    inside_rows, inside_columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    # One gather moves, mirrors and repeats the border.
    samples = torch.arange(len(x), device=x.device)
    found = x[
        samples[:, None, None, None],
        torch.arange(x.shape[1], device=x.device)[:, None, None],
        inside_rows[:, None, :, None],
        inside_columns[:, None, None, :],
    ]
    if padding == "zeros" and crop:
        found *= (rows == inside_rows)[:, None, :, None] & (columns == inside_columns)[:, None, None, :]
    return found
