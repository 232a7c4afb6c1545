# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""MNIST (LeCun et al. 1998) from its four standard files."""

from __future__ import annotations

import functools
import gzip
import hashlib
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from ctkd.errors import BadInput
from ctkd.options import Count, Index, Options

if TYPE_CHECKING:
    import numpy as np

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
        from ctkd.data.augment import random_shift
        from ctkd.data.checks import hold_out

        arrays = read_files(data_dir)
        parts = []
        for images, labels in (arrays[:2], arrays[2:]):
            pixels = torch.from_numpy(images.copy()).to(torch.float32).div_(255).unsqueeze(1)
            parts.append(Split(pixels, torch.from_numpy(labels.copy()).to(torch.int64)))
        kept, held = hold_out(len(parts[0]), self.options.validation, "mnist-validation")
        train, validation = (Split(parts[0].images[rows], parts[0].labels[rows]) for rows in (kept, held))
        augment = functools.partial(random_shift, pixels=self.options.shift) if self.options.shift else None
        return Data("mnist", train, validation, parts[1], classes=10, augment=augment)


def read_files(data_dir: Path | None) -> list[np.ndarray]:
    """The four arrays in the order of FILES. Raises: BadInput naming every missing or damaged file."""
    named = data_dir or (Path(os.environ["CTKD_DATA"]) if os.environ.get("CTKD_DATA") else None)
    if named is None:
        return [_parse(name, _download(name)) for name in FILES]
    problems: list[str] = []
    contents: dict[str, bytes] = {}
    for name in FILES:
        try:
            contents[name] = _read(named, name)
        except BadInput as problem:
            problems += problem.messages
    if problems:
        raise BadInput(*problems)
    return [_parse(name, contents[name]) for name in FILES]


def _read(folder: Path, name: str) -> bytes:
    places = [folder / "MNIST" / "raw", folder]
    for place in places:
        for path in (place / f"{name}.gz", place / name):
            if path.is_file():
                try:
                    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
                except (OSError, EOFError, zlib.error) as error:
                    raise BadInput(f"data set 'mnist': {path} is truncated or damaged ({error})") from None
                if hashlib.sha256(data).hexdigest() != FILES[name][0]:
                    raise BadInput(f"data set 'mnist': {path} has the wrong checksum; it is not the published file")
                return data
    looked = " and ".join(str(place) for place in places)
    raise BadInput(f"data set 'mnist': {name}.gz is missing; looked in {looked}")


def _download(name: str) -> bytes:
    import pooch

    from ctkd.storage import cache_folder

    cache = cache_folder() / "data" / "MNIST" / "raw"
    pooch.get_logger().setLevel("WARNING")
    try:
        path = pooch.retrieve(MIRROR + f"{name}.gz", f"md5:{FILES[name][1]}", f"{name}.gz", cache)
    except Exception as error:  # pooch passes on whatever the network layer raises
        raise BadInput(
            f"data set 'mnist': {name}.gz is not in {cache} and cannot be downloaded ({type(error).__name__}); "
            "name a folder that holds MNIST/raw/*.gz with --data-dir or CTKD_DATA"
        ) from None
    return _read(Path(path).parent, name)


def _parse(name: str, data: bytes) -> np.ndarray:
    import numpy as np

    rank = data[3]
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
