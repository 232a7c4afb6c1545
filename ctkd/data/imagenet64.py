# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Downsampled ImageNet, 64x64 (Chrabaszcz et al. 2017): 1,281,167 training photographs, 1000 classes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctkd.data.standard import Arrays, SmallCropOptions, joined, labels, pixels
from ctkd.errors import BadInput
from ctkd.options import Count

if TYPE_CHECKING:
    from ctkd.api import Data

CLASSES, SIDE = 1000, 64
SOURCE = "https://image-net.org/download-images (downsampled, 64x64; needs an account)"
TRAIN = tuple(f"train_data_batch_{i}" for i in range(1, 11))
FOLDERS = (
    "imagenet64",
    "Imagenet64_train_npz",
    "Imagenet64_train",
    "Imagenet64_val_npz",
    "Imagenet64_val",
    "Imagenet64_train_part1_npz",
    "Imagenet64_train_part2_npz",
    "Imagenet64_train_part1",
    "Imagenet64_train_part2",
    ".",
)
SPACE = 2.2
"""Memory needed, in multiples of all images as float32: those, the bytes they come from, and what training copies."""


class ImageNet64Options(SmallCropOptions):
    """How the training images are divided, and changed at random; the test images are left alone."""

    validation: Count = 10000
    """Training images held out, always the same for a size."""
    batches: Count = 10
    """How many of the ten training files are read, from the first on."""


class ImageNet64:
    """Looks in DIR and in ``DIR/imagenet64``, ``DIR/Imagenet64_train_npz``, ``DIR/Imagenet64_val_npz`` and others that
    its archives are called by; DIR from ``--data-dir`` or ``CTKD_DATA``. Nothing is downloaded.

    Expected: ``train_data_batch_1`` to ``train_data_batch_10`` and ``val_data``, pickled or with the ending ``.npz``.
    Labels are the files' numbers less 1: the order of the archive's ``map_clsloc.txt``, not that of the WNIDs.

    The labels of the official test images are not public: **the test split is the official validation set**, as in
    published results. The validation split is held out of the training images. All images lie in memory as float32,
    63 GB for all ten files; where there is less, ``data.batches`` reads a part, which no published figure does.
    """

    Options = ImageNet64Options

    def __init__(self, options: ImageNet64Options) -> None:
        self.options = options
        if options.batches > len(TRAIN):
            raise BadInput(f"data.batches={options.batches}: there are {len(TRAIN)} training files")

    def load(self, data_dir: Path | None) -> Data:
        from ctkd.data.standard import as_data

        files = _files(data_dir, (*TRAIN[: self.options.batches], "val_data"))
        _check_memory(files)
        parts = [_read(path) for path in files]
        return as_data("imagenet64", joined(parts[:-1]), parts[-1], CLASSES, self.options)


def _files(data_dir: Path | None, names: tuple[str, ...]) -> list[Path]:
    from ctkd.data.files import named_folder

    root = named_folder(data_dir)
    if root is None:
        raise BadInput(
            f"data set 'imagenet64' is not downloaded: get it from {SOURCE}, and name the folder of its files with "
            "--data-dir or CTKD_DATA"
        )
    found = {}
    for name in names:
        places = [root / folder / file for folder in FOLDERS for file in (f"{name}.npz", name)]
        path = next((place for place in places if place.is_file()), None)
        if path is not None:
            found[name] = path
    missing = [name for name in names if name not in found]
    if missing:
        raise BadInput(
            f"data set 'imagenet64': {', '.join(missing)} missing in {root}; expected there, or in a folder such as "
            f"{FOLDERS[1]}, as NAME or NAME.npz, from {SOURCE}"
        )
    return [found[name] for name in names]


def _check_memory(files: list[Path]) -> None:
    """Before hours of swapping. Pickles are as long as their images; archives say how long they are uncompressed."""
    import psutil

    needed, free = SPACE * 4 * sum(map(_length, files)), psutil.virtual_memory().available
    if needed > free:
        raise BadInput(
            f"data set 'imagenet64': {len(files) - 1} training files need about {needed / 1e9:.0f} GB of memory, "
            f"{free / 1e9:.0f} GB are free; set data.batches to read fewer"
        )


def _length(path: Path) -> int:
    """In bytes, uncompressed; what is no archive is refused when it is read."""
    import zipfile

    if path.suffix == ".npz" and zipfile.is_zipfile(path):
        with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    return path.stat().st_size


def _read(path: Path) -> Arrays:
    from ctkd.data.npz import open_archive
    from ctkd.data.pickles import read_pickle

    where = f"data set 'imagenet64': {path}"
    batch: dict[str, Any]
    if path.suffix == ".npz":
        with open_archive(path, where) as archive:
            batch = {name: archive[name] for name in ("data", "labels") if name in archive}
    else:
        batch = read_pickle(path, where)
    missing = [name for name in ("data", "labels") if name not in batch]
    if missing:
        raise BadInput(f"{where} holds no {' and no '.join(missing)}")
    images = pixels(batch["data"], SIDE, where)
    return images, labels(batch["labels"], len(images), CLASSES, where, first=1)
