# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A data set whose validation split is chosen samples, in one file that ``--dataset file.npz`` reads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctkd.api import Data, Split
from ctkd.errors import BadInput

ROWS = 10_000
"""Images looked at together: a large data set does not fit into memory several times."""


def with_validation(data: Data, split: str, samples: Sequence[int]) -> Data:
    """The data set with these samples of a split for validation; of ``train`` they are taken out there."""
    chosen: Split = getattr(data, split)
    rows = torch.tensor(samples)
    held = Split(chosen.images[rows], chosen.labels[rows])
    if split != "train":
        return replace(data, validation=held)
    kept = torch.ones(len(chosen), dtype=torch.bool)
    kept[rows] = False
    if not kept.any():
        raise BadInput(f"all {len(chosen)} training images were chosen, which leaves none for training; choose fewer")
    return replace(data, train=Split(chosen.images[kept], chosen.labels[kept]), validation=held)


def check_storable(data: Data) -> None:
    """Raises: BadInput if the images have a shape that would not be read back as it is."""
    shape = data.input_shape
    mistaken = len(shape) == 3 and shape[2] in (1, 3) and shape[0] > 4  # for channels in the last place
    if len(shape) not in (1, 3) or mistaken:
        raise BadInput(f"images of shape {shape} cannot be stored; accepted: (channels, height, width), (numbers,)")


def write_archive(path: Path, data: Data, samples: Sequence[int], about: Mapping[str, Any], values: np.ndarray) -> None:
    """Write the data set atomically; pixels are read back bit for bit.

    Args:
        samples: the original numbers of the validation images.
        about: where they come from, JSON.
        values: (runs, samples), the measure by which they were chosen; NaN where a run has none.
    """
    arrays: dict[str, np.ndarray] = {}
    for part in ("train", "validation", "test"):
        split: Split = getattr(data, part)
        arrays[f"x_{part}"], arrays[f"y_{part}"] = stored(split.images), split.labels.numpy()
    arrays |= {
        "validation_samples": np.array(samples, dtype=np.int64),
        "validation_values": values,
        "about": np.array(json.dumps(about, sort_keys=True)),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def stored(images: Tensor) -> np.ndarray:
    """float32 images in [0, 1] as uint8 where these are exactly the same when they are read, else as they are."""
    pixels = torch.empty(images.shape, dtype=torch.uint8)
    for part, original in zip(torch.split(pixels, ROWS), torch.split(images, ROWS), strict=True):
        part.copy_((original * 255).round())
        if not torch.equal(part.to(torch.float32).div_(255), original):
            return np.asarray(images)
    return np.asarray(pixels)
