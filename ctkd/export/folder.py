# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ctkd.errors import BadInput


def folder_problems(folder: Path) -> list[str]:
    """One line if the folder holds something already."""
    wanted = "name a folder that does not exist yet or is empty"
    if folder.exists() and not folder.is_dir():
        return [f"{folder} is a file; {wanted}"]
    return [f"{folder} is not empty; {wanted}"] if folder.is_dir() and any(folder.iterdir()) else []


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to build in, beside the final place. It moves there when the block ends well, else it vanishes.

    Raises: BadInput if anything cannot be written, inside the block or afterwards.
    """
    building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        yield building
        if folder.exists():
            folder.rmdir()
        building.rename(folder)
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
