# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The files of CIFAR-10 and CIFAR-100 in their version for Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ctkd.data.files import download, find_root, named_folder
from ctkd.data.pickles import read_pickle
from ctkd.data.standard import Arrays, labels, pixels
from ctkd.errors import BadInput

SITE = "https://www.cs.toronto.edu/~kriz/"


def read_batches(
    name: str,
    data_dir: Path | None,
    folder: str,
    files: Sequence[str],
    archive: tuple[str, str],
    key: str,
    classes: int,
) -> list[Arrays]:
    """The files' images and labels, in their order; without a folder the archive is downloaded, and checked.

    Args:
        archive: file name and the published MD5.
        key: under which the labels lie.

    Raises: BadInput naming the file and what is wrong with it.
    """
    if named_folder(data_dir) is None:
        data_dir = download(name, SITE + archive[0], archive[1], folder, untar=True)
    root = find_root(name, data_dir, folder, files, SITE + archive[0])
    return [_read(name, root / file, key, classes) for file in files]


def _read(name: str, path: Path, key: str, classes: int) -> Arrays:
    where = f"data set {name!r}: {path}"
    batch = read_pickle(path, where)
    missing = [part for part in ("data", key) if part not in batch]
    if missing:
        found = ", ".join(list(batch)[:10]) or "nothing"
        raise BadInput(f"{where} holds no {' and no '.join(missing)}; found: {found}")
    images = pixels(batch["data"], 32, where)
    return images, labels(batch[key], len(images), classes, where)
