# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The four files in IDX format that MNIST came in, and sets like it."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ctkd.data.files import download, named_folder
from ctkd.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

LONGEST = 100_000_000
"""Bytes of a file, uncompressed: a short one may be made to grow without end. The largest published one has half."""
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def read_files(
    name: str, data_dir: Path | None, folder: str, mirror: str, md5: Mapping[str, str], sha256: Mapping[str, str] | None
) -> list[np.ndarray]:
    """The arrays of NAMES, from ``DIR/folder`` and ``DIR``; without a folder the files are downloaded.

    Args:
        md5: of the published .gz files, for downloads.
        sha256: of the published files, uncompressed; None leaves them unchecked.

    Raises: BadInput naming every missing or damaged file.
    """
    named = named_folder(data_dir)
    problems: list[str] = []
    arrays = []
    for file in NAMES:
        try:
            places = [named / folder, named] if named else [download(name, f"{mirror}{file}.gz", md5[file], folder)]
            path, data = _read(name, places, file)
            if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256[file]:
                raise BadInput(f"data set {name!r}: {path} has the wrong checksum; it is not the published file")
            arrays.append(_parse(data, 3 if "images" in file else 1, f"data set {name!r}: {path}"))
        except BadInput as problem:
            problems += problem.messages
            if not named:  # one file that cannot be downloaded stands for all
                break
    if problems:
        raise BadInput(*problems)
    return arrays


def _read(name: str, places: list[Path], file: str) -> tuple[Path, bytes]:
    for place in places:
        for path in (place / f"{file}.gz", place / file):
            if path.is_file():
                try:
                    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
                        contents = opened.read(LONGEST + 1)
                    if len(contents) > LONGEST:
                        raise EOFError(f"longer than {LONGEST:,} bytes")
                    return path, contents
                except (OSError, EOFError, zlib.error) as error:
                    raise BadInput(f"data set {name!r}: {path} is truncated or damaged ({error})") from None
    raise BadInput(f"data set {name!r}: {file}.gz is missing; looked in {' and '.join(map(str, places))}")


def _parse(data: bytes, rank: int, where: str) -> np.ndarray:
    """An array of bytes: two zeros, 8 for bytes, the rank, the sizes as 32-bit integers, the contents."""
    import numpy as np

    if data[:4] != bytes([0, 0, 8, rank]) or len(data) < 4 + 4 * rank:
        raise BadInput(f"{where} is no IDX file of bytes with {rank} dimension{'s' if rank > 1 else ''}")
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    if len(data) - 4 - 4 * rank != np.prod(shape, dtype=object):
        raise BadInput(f"{where} is truncated or damaged: {len(data)} bytes for an array of shape {tuple(shape)}")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
