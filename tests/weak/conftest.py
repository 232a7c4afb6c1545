# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Certified runs. Do not change them: copy them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ctkd.run import certify, radii, train

from ..conftest import QUICK


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory, quick_run: tuple[Path, Any]) -> Path:
    """Margins on 40 test and 30 validation samples, radii of 20 test samples."""
    folder = tmp_path_factory.mktemp("weak") / "first"
    shutil.copytree(quick_run[0], folder)
    certify(folder, settings={"certify.split": "validation", "certify.samples": 30})
    radii(folder, tolerance=0.04, settings={"certify.samples": 20})
    return folder


@pytest.fixture(scope="package")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another method on the same images, at the same radius."""
    out = tmp_path_factory.mktemp("weak") / "second"
    return train(settings={**QUICK, "bound.name": "ibp", "teacher.name": "none", "train.seed": 1}, out=out)[0].path


@pytest.fixture
def copy(tmp_path: Path, run: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"
