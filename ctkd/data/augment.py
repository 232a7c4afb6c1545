# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Random changes of training images, a batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def random_shift(x: Tensor, generator: torch.Generator, pixels: int) -> Tensor:
    """Each image (batch, c, h, w) moved by up to ``pixels`` in both directions, uniformly; zeros move in."""
    moves = torch.randint(2 * pixels + 1, (2, len(x)), generator=generator).to(x.device)
    height, width = x.shape[2:]
    # Every crop of the padded image as a view; only the chosen ones are copied.
    crops = pad(x, [pixels] * 4).unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(len(x), device=x.device), :, moves[0], moves[1]]
