# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""TinyImageNet (Stanford CS231n 2015): 110,000 photographs of 64x64 pixels, 200 classes of ImageNet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctkd.data.standard import SmallCropOptions
from ctkd.errors import BadInput

if TYPE_CHECKING:
    from ctkd.api import Data

SOURCE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
CLASSES, SIDE = 200, 64
ANNOTATIONS = "val/val_annotations.txt"


class TinyImageNet:
    """Looks in ``DIR/tiny-imagenet-200`` and ``DIR``, DIR from ``--data-dir`` or ``CTKD_DATA``; nothing is downloaded.

    Needs Pillow. Expected as in the archive: ``wnids.txt``, ``train/WNID/images/*.JPEG``, ``val/images/*.JPEG`` and
    ``val/val_annotations.txt``. Classes are numbered in the order of their WNIDs' names.

    The labels of the official test images are not public: **the test split is the official validation set**, as in
    published results. The validation split is held out of the training images.
    """

    Options = SmallCropOptions

    def __init__(self, options: SmallCropOptions) -> None:
        self.options = options

    def load(self, data_dir: Path | None) -> Data:
        import numpy as np

        from ctkd.data.files import find_root
        from ctkd.data.pictures import decoded
        from ctkd.data.standard import as_data

        members = ("wnids.txt", "train", "val/images", ANNOTATIONS)
        root = find_root("tinyimagenet", data_dir, "tiny-imagenet-200", members, SOURCE)
        names = sorted(_lines(root / "wnids.txt"))
        if len(names) != CLASSES or len({*names}) != CLASSES:
            raise BadInput(f"data set 'tinyimagenet': {root / 'wnids.txt'} must list {CLASSES} different classes")
        missing = [name for name in names if not (root / "train" / name / "images").is_dir()]
        if missing:
            listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise BadInput(f"data set 'tinyimagenet': no class folder {listed} in {root / 'train'}")
        folders = [sorted((root / "train" / name / "images").glob("*.JPEG")) for name in names]
        empty = next((name for name, files in zip(names, folders, strict=True) if not files), None)
        if empty is not None:
            raise BadInput(f"data set 'tinyimagenet': no *.JPEG in {root / 'train' / empty / 'images'}")
        files = [file for folder in folders for file in folder]
        numbers = np.repeat(np.arange(CLASSES), [len(folder) for folder in folders])
        tests, truth = _annotations(root, {name: label for label, name in enumerate(names)})
        images, official = (decoded("tinyimagenet", root, part, f"rgb {SIDE}", _image) for part in (files, tests))
        return as_data("tinyimagenet", (images, numbers), (official, np.array(truth)), CLASSES, self.options)


def _image(path: Path) -> Any:
    from ctkd.data.pictures import colours, opened

    with opened(path) as image:
        if image.size != (SIDE, SIDE):
            width, height = image.size
            raise BadInput(f"{path}: {width}x{height} pixels, must have {SIDE}x{SIDE}")
        return colours(image, SIDE)


def _annotations(root: Path, numbers: dict[str, int]) -> tuple[list[Path], list[int]]:
    """The official validation images and their classes, in the order of their names."""
    path = root / ANNOTATIONS
    found = {}
    for line, text in enumerate(_lines(path), start=1):
        name, _, rest = text.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in numbers or not name or Path(name).name != name:
            raise BadInput(
                f"data set 'tinyimagenet': {path}, line {line}: must be a file's name, a tab and a class of wnids.txt, "
                f"found {text[:80]!r}"
            )
        found[name] = numbers[wnid]
    if not found:
        raise BadInput(f"data set 'tinyimagenet': {path} lists no images")
    names = sorted(found)
    return [root / "val" / "images" / name for name in names], [found[name] for name in names]


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise BadInput(f"data set 'tinyimagenet': {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"data set 'tinyimagenet': {path} is no text file") from None
