# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""CIFAR-10 (Krizhevsky 2009): 60,000 colour photographs of 32x32 pixels, 10 classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ctkd.data.standard import StandardOptions

if TYPE_CHECKING:
    from ctkd.api import Data

ARCHIVE = ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))


class CIFAR10:
    """Looks in ``DIR/cifar-10-batches-py`` and ``DIR``, DIR from ``--data-dir`` or ``CTKD_DATA``; without either it
    downloads. 50,000 images for training, of which some are held out; the test batch is the test split.

    Augmentation as expressive-losses and CTBench publish it: mirroring, and crops with edge padding by 2 pixels.
    ``data.padding=zeros`` and ``data.crop=4`` are the other usual choice. The batches' checksums are not asked for.
    """

    Options = StandardOptions

    def __init__(self, options: StandardOptions) -> None:
        self.options = options

    def load(self, data_dir: Path | None) -> Data:
        from ctkd.data.cifar import read_batches
        from ctkd.data.standard import as_data, joined

        files = (*TRAIN, "test_batch")
        parts = read_batches("cifar10", data_dir, "cifar-10-batches-py", files, ARCHIVE, "labels", 10)
        return as_data("cifar10", joined(parts[:-1]), parts[-1], 10, self.options)
