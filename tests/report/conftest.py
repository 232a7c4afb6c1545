# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Runs to report on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ctkd.run import certify_each, radii


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory, quick_run: tuple[Path, Any]) -> Path:
    """A run with results at three radii and radii of single samples. Do not change it: copy it."""
    folder = tmp_path_factory.mktemp("report") / "first"
    shutil.copytree(quick_run[0], folder)
    certify_each(folder, [0.02, 0.05])
    radii(folder, tolerance=0.02)
    return folder


@pytest.fixture
def copy(tmp_path: Path, run: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def quick(tmp_path: Path, quick_run: tuple[Path, Any]) -> Path:
    """A run with results at its own radius only."""
    shutil.copytree(quick_run[0], tmp_path / "quick")
    return tmp_path / "quick"
