# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Arrays of images and labels, from wherever they were read, as a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.errors import BadInput
from ctkd.options import Options, Unit

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ctkd.api import Data, Split


class ArrayOptions(Options):
    """How the training images are divided."""

    validation: Unit = 0.1
    """Share of the training images that is held out, always the same ones; not used where there are validation
    images of their own."""


def to_images(array: np.ndarray, where: str) -> Tensor:
    """float32 in [0, 1]: 8-bit integers are divided by 255, floats are taken as they are.

    Raises: BadInput for another type.
    """
    import numpy as np
    import torch

    if array.dtype == np.uint8:
        return torch.from_numpy(array.copy()).to(torch.float32).div_(255)
    if np.issubdtype(array.dtype, np.floating):
        return torch.from_numpy(array.astype(np.float32))
    raise BadInput(f"{where}: images must be uint8, or floats in [0, 1]; found {array.dtype}")


def to_labels(array: np.ndarray, where: str) -> Tensor:
    """Raises: BadInput unless there is one integer for each image."""
    import numpy as np
    import torch

    flat = array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or not np.issubdtype(flat.dtype, np.integer):
        raise BadInput(
            f"{where}: labels must be integers of shape (count,), found {array.dtype} of shape {array.shape}"
        )
    return torch.from_numpy(flat.astype(np.int64))


def divided(name: str, train: Split, test: Split, share: float, classes: int, validation: Split | None = None) -> Data:
    """A data set with validation images of its own, or else a share of the training images held out for validation.

    Raises: BadInput if one of the two parts would be empty.
    """
    from ctkd.api import Data, Split
    from ctkd.data.checks import hold_out

    if validation is not None:
        return Data(name, train, validation, test, classes)
    size = round(share * len(train))
    if not 0 < size < len(train):
        raise BadInput(
            f"data.validation={share:g}: must leave images for training and for validation; there are {len(train)}"
        )
    kept, held = hold_out(len(train), size, "validation")
    first, second = (Split(train.images[rows], train.labels[rows]) for rows in (kept, held))
    return Data(name, first, second, test, classes)
