# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""GTSRB (Stallkamp et al. 2012), the German traffic sign recognition benchmark: 43 classes, 51,839 photographs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctkd.data.standard import AugmentationOptions
from ctkd.errors import BadInput
from ctkd.options import Count, Index, Unit

if TYPE_CHECKING:
    import numpy as np

    from ctkd.api import Data

CLASSES = 43
SOURCE = "https://benchmark.ini.rub.de (GTSRB_Final_Training_Images, _Test_Images and _Test_GT)"
TRUTH = "GT-final_test.csv"


class GTSRBOptions(AugmentationOptions):
    """How the training images are divided, and changed at random; nothing is changed unless it is asked for."""

    validation: Unit = 0.1
    """Share of each class's tracks that is held out, always the same ones."""
    size: Count = 32
    """Images, of 15 to 250 pixels, are resized to size x size, bilinearly with antialiasing."""
    flip: bool = False
    """Mirror every second image, on average, left to right; a mirrored sign may mean something else."""
    crop: Index = 0
    """Extend each image by so many pixels on all sides and cut out one of the old size; 0 for none."""


class GTSRB:
    """Looks in ``DIR/GTSRB`` and ``DIR``, DIR from ``--data-dir`` or ``CTKD_DATA``; nothing is downloaded.

    Needs Pillow. Expected: ``Final_Training/Images/CLASS/`` with ``*.ppm`` and ``GT-CLASS.csv``, CLASS from 00000 to
    00042; ``Final_Test/Images/*.ppm``; and ``GT-final_test.csv`` with the test images or in a folder above, as its
    archive leaves it. Whole images are resized; the regions of interest are not used.

    About 30 training images, a track, show one and the same sign. Validation images are whole tracks, so that none is
    a neighbour of an image trained on. The test split is the final test set.
    """

    Options = GTSRBOptions

    def __init__(self, options: GTSRBOptions) -> None:
        self.options = options

    def load(self, data_dir: Path | None) -> Data:
        import numpy as np

        from ctkd.data.files import find_root
        from ctkd.data.standard import divided_at

        root = find_root("gtsrb", data_dir, "GTSRB", ("Final_Training/Images", "Final_Test/Images"), SOURCE)
        training = root / "Final_Training" / "Images"
        names = [f"{label:05d}" for label in range(CLASSES)]
        missing = [name for name in names if not (training / name).is_dir()]
        if missing:
            raise BadInput(f"data set 'gtsrb': no class folder {', '.join(missing)} in {training}")
        files: list[Path] = []
        numbers: list[int] = []
        for label, name in enumerate(names):
            for file, found in _rows(training / name / f"GT-{name}.csv"):
                if found != label:
                    where = training / name / f"GT-{name}.csv"
                    raise BadInput(f"data set 'gtsrb': {where} gives {file} the class {found}, not its folder's")
                files.append(training / name / file)
                numbers.append(label)
        test = root / "Final_Test" / "Images"
        truth = next((p / TRUTH for p in (test, test.parent, root, root.parent) if (p / TRUTH).is_file()), None)
        if truth is None:
            raise BadInput(
                f"data set 'gtsrb': {TRUTH} is missing; looked in {test}, {test.parent}, {root}, {root.parent}"
            )
        rows = _rows(truth)
        train = (self._images(root, files), np.array(numbers))
        final = (self._images(root, [test / file for file, _ in rows]), np.array([found for _, found in rows]))
        kept, held = self._divided(files, numbers)
        return divided_at("gtsrb", train, final, CLASSES, self.options, kept, held)

    def _images(self, root: Path, files: list[Path]) -> np.ndarray:
        from ctkd.data.pictures import colours, decoded, opened

        def read(path: Path) -> Any:
            with opened(path) as image:
                return colours(image, self.options.size)

        return decoded("gtsrb", root, files, f"rgb {self.options.size} bilinear", read)

    def _divided(self, files: list[Path], numbers: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows held out: whole tracks, which is what precedes the underscore in a file's name."""
        import numpy as np

        from ctkd.data.checks import hold_out

        held: set[tuple[int, str]] = set()
        tracks = sorted({(label, file.name.partition("_")[0]) for label, file in zip(numbers, files, strict=True)})
        for label in range(CLASSES):
            own = [track for track in tracks if track[0] == label]
            size = round(self.options.validation * len(own))
            held.update(own[i] for i in hold_out(len(own), size, f"gtsrb-validation-{label}")[1].tolist())
        chosen = np.array([(n, file.name.partition("_")[0]) in held for n, file in zip(numbers, files, strict=True)])
        if chosen.all() or not chosen.any():
            raise BadInput(
                f"data.validation={self.options.validation:g}: must leave tracks for training and for validation; "
                f"there are {len(tracks)}"
            )
        return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _rows(path: Path) -> list[tuple[str, int]]:
    """File names and classes. Raises: BadInput naming the file, and the line where there is one."""
    where = f"data set 'gtsrb': {path}"
    found = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, delimiter=";")
            if not {"Filename", "ClassId"} <= {*(reader.fieldnames or ())}:
                raise BadInput(f"{where} must have the columns Filename and ClassId, divided by semicolons")
            for row in reader:
                name, label = row["Filename"] or "", row["ClassId"] or ""
                if not label.isdecimal() or int(label) >= CLASSES:
                    raise BadInput(
                        f"{where}, line {reader.line_num}: ClassId must be 0..{CLASSES - 1}, found {label!r}"
                    )
                if not name or Path(name).name != name:
                    raise BadInput(f"{where}, line {reader.line_num}: Filename must be a file's name, found {name!r}")
                found.append((name, int(label)))
    except OSError as error:
        raise BadInput(f"{where} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{where} is no table: {error}") from None
    if not found:
        raise BadInput(f"{where} lists no images")
    return found
