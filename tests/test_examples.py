# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Every example runs as it is, uses the public interface only, and is listed in the documentation."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PUBLIC = {
    "",
    "api",
    "boxes",
    "errors",
    "hookspecs",
    "options",
    "propagate",
    "propagate.ops",
    "run",
    "teaching",
    "testing",
    "verifying",
    "vnnlib",
}
"""Modules of ctkd that a stranger may import."""
PROMISES = {
    "compare_methods": r"ibp +\d+\.\d%",
    "export_and_verify_with_onnxruntime": r"smallest margin at 200 corners [+-]\d",
    "own_bound_method": r"weight 2\.0: .*certified \d",
    "own_model_and_data": r"certified \d",
    "own_objective": r"student: .*certified \d",
    "own_teacher": r"student: .*certified \d",
    "read_a_run": r"certified accuracy: \d",
    "train_and_certify": r"certified at eps 0\.05: \d",
}
"""What each of them prints in the end."""


def imported(source: str) -> Iterator[str]:
    """Names of the modules of ctkd that a program imports, without the first ``ctkd.``."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (name.removeprefix("ctkd").removeprefix(".") for name in names if name.split(".")[0] == "ctkd")


def test_there_are_examples_and_each_promises_something() -> None:
    assert {path.stem for path in EXAMPLES} == set(PROMISES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CTKD_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(PROMISES[path.stem], done.stdout), done.stdout
    assert done.stderr == ""
    assert [left.name for left in tmp_path.iterdir()] in ([], ["cache"])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_uses_the_public_interface_only(path: Path) -> None:
    assert set(imported(path.read_text())) <= PUBLIC


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_says_what_it_shows_and_is_listed(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert re.search(r"About \d+ seconds\s+on one core", docstring)
    assert f"`{path.name}`" in (ROOT / "docs" / "how-to" / "examples.md").read_text()
