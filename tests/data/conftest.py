# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Each data set's small tree, written once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from .trees import TREES


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder for ``--data-dir``. Do not change what is in it."""

    @functools.cache
    def written(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        TREES[name][0](folder)
        return folder

    return written
