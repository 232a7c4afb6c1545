# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""MNIST (LeCun et al. 1998) from its four standard files."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from ctkd.errors import BadInput
from ctkd.options import Count, Index, Options

if TYPE_CHECKING:
    from ctkd.api import Data

# Name, SHA-256 of the uncompressed file, MD5 of the published .gz.
FILES = {
    "train-images-idx3-ubyte": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    ),
    "train-labels-idx1-ubyte": (
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "d53e105ee54ea40749a09fcbcd1e9432",
    ),
    "t10k-images-idx3-ubyte": (
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "9fb629c4189551a2d022fa330f9573f3",
    ),
    "t10k-labels-idx1-ubyte": (
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
}
MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"


class MNISTOptions(Options):
    """How the 60,000 training images are divided; the 10,000 test images are left alone."""

    validation: Count = 5000
    """Training images held out, always the same for a size."""
    shift: Index = 0
    """Training images are moved by up to this many pixels, at random, zeros moving in. Published recipes have 0."""


class MNIST:
    """Looks in ``DIR/MNIST/raw`` and ``DIR``, DIR from ``--data-dir`` or ``CTKD_DATA``; without either it downloads."""

    Options = MNISTOptions

    def __init__(self, options: MNISTOptions) -> None:
        self.options = options
        if options.validation >= 60000:
            raise BadInput(f"data.validation={options.validation}: must leave some of the 60,000 training images")

    def load(self, data_dir: Path | None) -> Data:
        import torch

        from ctkd.api import Data, Split
        from ctkd.data.augment import crop_and_flip
        from ctkd.data.checks import hold_out
        from ctkd.data.idx import read_files

        sha256, md5 = ({name: sums[i] for name, sums in FILES.items()} for i in (0, 1))
        arrays = read_files("mnist", data_dir, "MNIST/raw", MIRROR, md5, sha256)
        parts = []
        for images, labels in (arrays[:2], arrays[2:]):
            pixels = torch.from_numpy(images.copy()).to(torch.float32).div_(255).unsqueeze(1)
            parts.append(Split(pixels, torch.from_numpy(labels.copy()).to(torch.int64)))
        kept, held = hold_out(len(parts[0]), self.options.validation, "mnist-validation")
        train, validation = (Split(parts[0].images[rows], parts[0].labels[rows]) for rows in (kept, held))
        moved = functools.partial(crop_and_flip, crop=self.options.shift, padding="zeros")
        return Data("mnist", train, validation, parts[1], classes=10, augment=moved if self.options.shift else None)
