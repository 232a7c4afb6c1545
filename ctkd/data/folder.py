# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Your own images in folders, without a plugin: ``--dataset DIR/``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ctkd.data.arrays import ArrayOptions, divided, to_images
from ctkd.data.pictures import opened, resized
from ctkd.errors import BadInput
from ctkd.options import AbsolutePath, Count

if TYPE_CHECKING:
    from ctkd.api import Data, Split

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
GREY = {"1", "L", "LA"}
COLOUR = {"RGB", "RGBA", "P", "CMYK", "YCbCr"}


class FolderOptions(ArrayOptions):
    """Where the images lie and what they become."""

    path: AbsolutePath
    """A folder with ``train/CLASS/`` and ``test/CLASS/``, a folder of images for each class."""
    colour: Literal["auto", "grey", "rgb"] = "auto"
    """One channel or three; auto follows the first image."""
    size: Count | None = None
    """Images are resized to size x size, bilinearly with antialiasing; by default all must have one size already."""


def _classes(part: Path) -> list[str]:
    """The names of its folders; hidden ones are some program's."""
    return sorted(folder.name for folder in part.iterdir() if folder.is_dir() and not folder.name.startswith("."))


class Folder:
    """One folder per class; classes are numbered in the order of their names. Needs Pillow."""

    Options = FolderOptions

    def __init__(self, options: FolderOptions) -> None:
        self.options = options
        self.mode = {"auto": "", "grey": "L", "rgb": "RGB"}[options.colour]

    def load(self, data_dir: Path | None) -> Data:
        root = self.options.path
        if not root.is_dir():
            what = (
                "is a file, not a folder of images; archives end in .npz"
                if root.exists()
                else "there is no such folder"
            )
            raise BadInput(f"data set {root}: {what}")
        missing = [str(root / part) for part in ("train", "test") if not (root / part).is_dir()]
        if missing:
            raise BadInput(f"data set {root}: no folder {' and '.join(missing)}; needed: train/CLASS and test/CLASS")
        names, tested = (_classes(root / part) for part in ("train", "test"))
        if not names:
            raise BadInput(f"data set {root}: train holds no class folder")
        for only, there, other in (("test", tested, names), ("train", names, tested)):
            unknown = [name for name in there if name not in other]
            if unknown:
                raise BadInput(
                    f"data set {root}: classes {', '.join(unknown)} are in {only} only; train and test must have the "
                    "same class folders"
                )
        splits = [self._split(root / part, names) for part in ("train", "test")]
        return divided(root.name, splits[0], splits[1], self.options.validation, len(names))

    def _split(self, folder: Path, names: list[str]) -> Split:
        import numpy as np
        import torch

        from ctkd.api import Split

        arrays: list[Any] = []
        labels: list[int] = []
        for label, name in enumerate(names):
            paths = [path for path in sorted((folder / name).glob("*")) if path.suffix.lower() in SUFFIXES]
            if not paths:
                raise BadInput(f"data set {folder / name}: no images; accepted: {', '.join(sorted(SUFFIXES))}")
            for path in paths:
                arrays.append(self._read(path))
                labels.append(label)
                if arrays[-1].shape != arrays[0].shape:
                    first, found = ("x".join(map(str, a.shape[:2])) for a in (arrays[0], arrays[-1]))
                    raise BadInput(f"{path}: {found} pixels, other images have {first}; set data.size to resize")
        images = to_images(np.stack(arrays), str(folder))
        images = images.unsqueeze(1) if images.dim() == 3 else images.movedim(3, 1).contiguous()
        return Split(images, torch.tensor(labels))

    def _read(self, path: Path) -> Any:
        import numpy as np

        with opened(path) as image:
            if image.mode not in GREY | COLOUR:
                raise BadInput(f"{path}: images of mode {image.mode} are not read; use 8 bits a channel")
            self.mode = self.mode or ("L" if image.mode in GREY else "RGB")
            plain = image.convert(self.mode)
        return np.asarray(plain if self.options.size is None else resized(plain, self.options.size))
