# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What every data set must satisfy, whoever loads it."""

from __future__ import annotations

import torch

from ctkd.api import Data
from ctkd.errors import BadInput


def check_data(data: Data) -> None:
    """Raises: BadInput naming the data set, the split and what is wrong; all mistakes together."""
    problems = []
    for name in ("train", "validation", "test"):
        split = getattr(data, name)
        where = f"data set {data.name!r}, {name} split"
        images, labels = split.images, split.labels
        if len(images) == 0 or len(images) != len(labels):
            problems.append(f"{where}: {len(images)} images and {len(labels)} labels")
            continue
        if images.dtype != torch.float32 or labels.dtype != torch.int64:
            problems.append(
                f"{where}: images must be float32 and labels int64, found {images.dtype} and {labels.dtype}"
            )
            continue
        if not images.isfinite().all():
            problems.append(f"{where}: some pixels are NaN or infinite")
        elif images.min() < 0 or images.max() > 1:
            low, high = float(images.min()), float(images.max())
            problems.append(
                f"{where}: pixels must lie in [0, 1], found {low:g} to {high:g}; divide 8-bit images by 255"
            )
        if labels.min() < 0 or labels.max() >= data.classes:
            low, high = int(labels.min()), int(labels.max())
            problems.append(f"{where}: labels must lie in 0..{data.classes - 1}, found {low} to {high}")
        if tuple(images.shape[1:]) != data.input_shape:
            problems.append(f"{where}: images of shape {tuple(images.shape[1:])}, expected {data.input_shape}")
    if problems:
        raise BadInput(*problems)


def hold_out(count: int, size: int, seed: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of a fixed split: (kept, held out), both in ascending order; the same on every machine."""
    from ctkd.randomness import generator

    order = torch.randperm(count, generator=generator(0, seed))
    return order[size:].sort().values, order[:size].sort().values
