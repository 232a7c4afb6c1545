# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Your own data in one file, without a plugin: ``--dataset file.npz``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ctkd.data.arrays import ArrayOptions, divided, to_images, to_labels
from ctkd.errors import BadInput
from ctkd.options import AbsolutePath, Count

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ctkd.api import Data

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
VALIDATION = ("x_validation", "y_validation")
"""Both or neither."""


class NpzOptions(ArrayOptions):
    """Where the file lies and how its arrays are to be read."""

    path: AbsolutePath
    """A NumPy archive with the arrays x_train, y_train, x_test, y_test: images uint8 or floats in [0, 1]. With
    x_validation and y_validation, such as in files of ``ctkd weak``, nothing is held out."""
    layout: Literal["channels-first", "channels-last"] = "channels-first"
    """Of images with channels, (count, c, h, w) or (count, h, w, c); (count, h, w) and (count, d) need none."""
    classes: Count | None = None
    """By default one more than the largest label."""


class Npz:
    """Arrays of a file that ``numpy.savez`` wrote: four, or six with validation images. Pickled objects in it are
    refused, not read."""

    Options = NpzOptions

    def __init__(self, options: NpzOptions) -> None:
        self.options = options

    def load(self, data_dir: Path | None) -> Data:
        from ctkd.api import Split

        path = self.options.path
        arrays = _read(path)
        splits = {}
        for part in ("train", "test", "validation") if VALIDATION[0] in arrays else ("train", "test"):
            where = f"data set {path}, x_{part}"
            images = self._shaped(to_images(arrays[f"x_{part}"], where), where)
            splits[part] = Split(images, to_labels(arrays[f"y_{part}"], f"data set {path}, y_{part}"))
            if len(images) != len(splits[part].labels) or len(images) == 0:
                raise BadInput(f"{where}: {len(images)} images, and {len(splits[part].labels)} labels in y_{part}")
        classes = self.options.classes or 1 + max(int(split.labels.max()) for split in splits.values())
        share, own = self.options.validation, splits.get("validation")
        return divided(path.stem, splits["train"], splits["test"], share, classes, own)

    def _shaped(self, images: Tensor, where: str) -> Tensor:
        if images.dim() not in (2, 3, 4):
            raise BadInput(
                f"{where}: found shape {tuple(images.shape)}; accepted: (count, h, w), (count, c, h, w), (count, d)"
            )
        if images.dim() == 3:
            return images.unsqueeze(1)
        if images.dim() == 4 and self.options.layout == "channels-last":
            return images.movedim(3, 1).contiguous()
        if images.dim() == 4 and images.shape[3] in (1, 3) and images.shape[1] > 4:
            raise BadInput(
                f"{where}: shape {tuple(images.shape)} looks like channels in the last place; "
                "set data.layout=channels-last"
            )
        return images


def _read(path: Path) -> dict[str, np.ndarray]:
    with open_archive(path, f"data set {path}") as archive:
        wanted = ARRAYS + (VALIDATION if any(name in archive for name in VALIDATION) else ())
        missing = [name for name in wanted if name not in archive]
        if missing:
            raise BadInput(
                f"data set {path}: no array {', '.join(missing)}; needed: {', '.join(wanted)}, "
                f"found: {', '.join(archive.files) or 'none'}"
            )
        arrays = {name: archive[name] for name in wanted}
    wrong = [name for name, array in arrays.items() if isinstance(array, bytes)]
    if wrong:
        raise BadInput(f"data set {path}: {', '.join(wrong)} is no array; write the file with numpy.savez")
    return arrays


@contextlib.contextmanager
def open_archive(path: Path, where: str) -> Iterator[Any]:
    """A NumPy archive, nothing in it unpickled; ``where``: how messages begin. Raises: BadInput, also on reading it."""
    import numpy as np

    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise BadInput(f"{where} is one array, not an archive of several; write it with numpy.savez")
        with archive:
            yield archive
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"{where} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # compressed and encrypted in any way, of any size: anything may come out of it
        what = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"{where} is no NumPy archive: {what[:200]}") from None
