# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Where each training image's last attack ended, so that the next one can start there.

Zheng et al. 2020, arXiv 1912.11969 (ATTA). A place is kept relative to the box, so it grows with the radius, and as one
byte for each pixel: corners are exact, and a checkpoint that holds the bytes holds everything.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctkd.api import Data
from ctkd.boxes import Box
from ctkd.distributed import world
from ctkd.errors import BadInput

LEVELS = 255


def check_still(data: Data, setting: str) -> None:
    """Raises: BadInput where the images do not stay what they are, or several processes would each know a part."""
    if data.augment is not None:
        raise BadInput(
            f"{setting}: data set {data.name!r} changes its images at random, and attacks can only go on from images "
            "that stay the same; switch that off in [data], or leave warm_start out"
        )
    if world() > 1:
        raise BadInput(f"{setting} works in one process, not in {world()}")


@dataclass(frozen=True, eq=False)
class Places:
    """The places of some samples, as rows of those of the whole training set.

    Attributes:
        bytes: (count, *input_shape), uint8, of all training images: 0 is the box's lower end and 255 its upper one.
        known: (count,), bool: which images were attacked before.
        rows: (batch,): the samples meant.
    """

    bytes: Tensor
    known: Tensor
    rows: Tensor

    @staticmethod
    def of(images: Tensor) -> Places:
        """None known yet."""
        count = torch.arange(len(images), device=images.device)
        return Places(torch.zeros_like(images, dtype=torch.uint8), torch.zeros_like(count, dtype=torch.bool), count)

    def at(self, rows: Tensor) -> Places:
        """Those of other samples."""
        return Places(self.bytes, self.known, rows)

    def part(self, rows: slice) -> Places:
        return self.at(self.rows[rows])

    def inside(self, box: Box) -> Tensor:
        """Points of the box, NaN where a sample is not known: (batch, *input_shape), like the box."""
        part = self.bytes[self.rows].to(box.lower.dtype) / LEVELS
        point = box.clamp(torch.lerp(box.lower, box.upper, part))
        known = self.known[self.rows].reshape(-1, *[1] * (point.dim() - 1))
        return torch.where(known, point, torch.nan)

    def keep(self, points: Tensor, box: Box) -> None:
        """Remember points of the box."""
        width = box.upper - box.lower
        part = torch.where(width > 0, (points - box.lower) / torch.where(width > 0, width, 1), 0.5)
        self.bytes[self.rows] = (part.nan_to_num(0.5) * LEVELS).round().clamp(0, LEVELS).to(torch.uint8)
        self.known[self.rows] = True
