# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Fashion-MNIST (Xiao et al. 2017): 70,000 grey images of clothing, 28x28 pixels, 10 classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ctkd.data.standard import StandardOptions
from ctkd.errors import BadInput
from ctkd.options import Index

if TYPE_CHECKING:
    from ctkd.api import Data

MD5 = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


class FashionMNISTOptions(StandardOptions):
    """How the training images are divided, and changed at random, which published recipes do not do."""

    flip: bool = False
    """Mirror every second image, on average, left to right."""
    crop: Index = 0
    """Extend each image by so many pixels on all sides and cut out one of the old size; 0 for none."""


class FashionMNIST:
    """Looks in ``DIR/FashionMNIST/raw`` and ``DIR``, DIR from ``--data-dir`` or ``CTKD_DATA``; without either it
    downloads. 60,000 images for training, of which some are held out, and 10,000 test images.

    Its files have the names of MNIST's: those of MNIST are recognised and refused.
    """

    Options = FashionMNISTOptions

    def __init__(self, options: FashionMNISTOptions) -> None:
        self.options = options

    def load(self, data_dir: Path | None) -> Data:
        import hashlib

        from ctkd.data.idx import NAMES, read_files
        from ctkd.data.mnist import FILES
        from ctkd.data.standard import as_data, labels

        arrays = read_files("fashion-mnist", data_dir, "FashionMNIST/raw", MIRROR, MD5, None)
        parts = []
        for i in (0, 2):
            where = f"data set 'fashion-mnist': {NAMES[i]} and {NAMES[i + 1]}"
            if arrays[i].shape[1:] != (28, 28):
                raise BadInput(f"{where}: images must have 28x28 pixels, found {arrays[i].shape[1:]}")
            parts.append((arrays[i][:, None], labels(arrays[i + 1], len(arrays[i]), 10, where)))
        header = bytes([0, 0, 8, 1]) + len(arrays[1]).to_bytes(4, "big")
        if hashlib.sha256(header + arrays[1].tobytes()).hexdigest() == FILES[NAMES[1]][0]:
            raise BadInput("data set 'fashion-mnist': these are MNIST's files; put Fashion-MNIST's in FashionMNIST/raw")
        return as_data("fashion-mnist", parts[0], parts[1], 10, self.options)
