# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""CIFAR-100 (Krizhevsky 2009): 60,000 colour photographs of 32x32 pixels, 100 classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ctkd.data.standard import StandardOptions

if TYPE_CHECKING:
    from ctkd.api import Data

ARCHIVE = ("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85")


class CIFAR100:
    """Looks in ``DIR/cifar-100-python`` and ``DIR``, DIR from ``--data-dir`` or ``CTKD_DATA``; without either it
    downloads. The 100 fine labels; 50,000 images for training, of which some are held out, and 10,000 test images.

    Augmentation as for ``cifar10``; no certified training has one of its own here.
    """

    Options = StandardOptions

    def __init__(self, options: StandardOptions) -> None:
        self.options = options

    def load(self, data_dir: Path | None) -> Data:
        from ctkd.data.cifar import read_batches
        from ctkd.data.standard import as_data

        train, test = read_batches(
            "cifar100", data_dir, "cifar-100-python", ("train", "test"), ARCHIVE, "fine_labels", 100
        )
        return as_data("cifar100", train, test, 100, self.options)
