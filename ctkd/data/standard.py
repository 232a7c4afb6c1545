# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What published sets of images share: options, how 8-bit arrays become a data set, and checks with the file's name."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

from ctkd.errors import BadInput
from ctkd.options import Count, Index, Options

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ctkd.api import Data, Split


class AugmentationOptions(Options):
    """Random changes of the training images, fresh in each epoch."""

    flip: bool = True
    """Mirror every second image, on average, left to right."""
    crop: Index = 2
    """Extend each image by so many pixels on all sides and cut out one of the old size; 0 for none."""
    padding: Literal["edge", "zeros"] = "edge"
    """What images are extended by: the pixels of their border, or black."""


class StandardOptions(AugmentationOptions):
    """How the training images are divided, and changed at random; the test images are left alone."""

    validation: Count = 5000
    """Training images held out, always the same for a size."""


class SmallCropOptions(StandardOptions):
    """For images of 64x64 pixels. Published: edge padding by 4 pixels."""

    crop: Index = 4
    """Extend each image by so many pixels on all sides and cut out one of the old size; 0 for none."""


Arrays = tuple["np.ndarray", "np.ndarray"]
"""Images (count, channels, height, width), uint8, and labels (count,), int64."""


def pixels(found: Any, side: int, where: str) -> np.ndarray:
    """Rows of 3 * side * side bytes, one colour after the other, as (count, 3, side, side). Raises: BadInput."""
    import numpy as np

    if not isinstance(found, np.ndarray) or found.dtype != np.uint8 or found.ndim != 2 or found.shape[1] != 3 * side**2:
        what = f"{found.dtype} of shape {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise BadInput(f"{where}: images must be uint8 of shape (count, {3 * side**2}), found {what}")
    return found.reshape(-1, 3, side, side)


def labels(found: Any, count: int, classes: int, where: str, first: int = 0) -> np.ndarray:
    """One label per image, counted from 0 on. ``first``: the file's lowest label. Raises: BadInput."""
    import numpy as np

    kinds = (int, np.integer)
    if isinstance(found, list) and all(isinstance(label, kinds) and not isinstance(label, bool) for label in found):
        try:
            found = np.array(found, dtype=np.int64)
        except OverflowError:
            raise BadInput(f"{where}: labels must lie in {first}..{first + classes - 1}") from None
    if not isinstance(found, np.ndarray) or found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise BadInput(f"{where}: labels must be a list of integers")
    if len(found) != count or count == 0:
        raise BadInput(f"{where}: {count} images and {len(found)} labels")
    low, high = int(found.min()), int(found.max())
    if low < first or high >= first + classes:
        raise BadInput(f"{where}: labels must lie in {first}..{first + classes - 1}, found {low} to {high}")
    return found.astype(np.int64) - first


def joined(parts: list[Arrays]) -> Arrays:
    """Several files' images and labels, one after the other."""
    import numpy as np

    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def as_data(name: str, train: Arrays, test: Arrays, classes: int, options: StandardOptions) -> Data:
    """A data set of which ``options.validation`` training images are held out.

    Raises: BadInput where none would be left to train on.
    """
    from ctkd.data.checks import hold_out

    count = len(train[1])
    if options.validation >= count:
        raise BadInput(f"data.validation={options.validation}: must leave some of the {count:,} training images")
    kept, held = hold_out(count, options.validation, f"{name}-validation")
    return divided_at(name, train, test, classes, options, kept.numpy(), held.numpy())


def divided_at(
    name: str,
    train: Arrays,
    test: Arrays,
    classes: int,
    options: AugmentationOptions,
    kept: np.ndarray,
    held: np.ndarray,
) -> Data:
    """A data set of training images at the rows ``kept``, and validation images at ``held``."""
    from ctkd.api import Data

    side = min(train[0].shape[2:])
    if options.crop >= side:
        raise BadInput(f"data.crop={options.crop}: must be less than the images' {side} pixels")
    first, second = (_split(train[0][rows], train[1][rows]) for rows in (kept, held))
    return Data(name, first, second, _split(*test), classes, augmentation(options))


def _split(images: np.ndarray, numbers: np.ndarray) -> Split:
    import torch

    from ctkd.api import Split
    from ctkd.data.arrays import to_images

    return Split(to_images(images, "images"), torch.from_numpy(numbers))


def augmentation(options: AugmentationOptions) -> Any:
    """``Data.augment``, or None if nothing is asked for."""
    if not options.flip and options.crop == 0:
        return None
    from ctkd.data.augment import crop_and_flip

    changed: functools.partial[Tensor] = functools.partial(
        crop_and_flip, crop=options.crop, padding=options.padding, flip=options.flip
    )
    return changed
